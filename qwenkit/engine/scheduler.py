"""Which tokens the next forward computes. Plain Python, no torch: testable in microseconds.

Each step is one ragged batch under a token budget. Sequences that decode come first (one token
each); what is left of the budget, and no more than `prefill_limit` says while somebody decodes,
goes to prompts in chunks. So a long prompt never makes the others wait long. Half of it goes to the
prompt that came first, the rest to those that are done soonest, so a short one need not wait for a
long one and the long one still comes to its end.

A request is admitted when there are blocks for its prompt; it gets more as it grows. When none is
left, the request that was admitted last is paused: its blocks are taken away and it is the first to
go on later. Its tokens are computed again then (or found in the cache), so pausing changes nothing
in what it says. Requests that begin alike share the blocks of that beginning, and a request whose
next block is just being computed for another waits for it instead of computing it too.
Draft tokens are put into a finished plan (`qwenkit.engine.speculate`); they take what room is left,
and `commit` keeps those that passed. Not covered: priorities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qwenkit.engine.blocks import BlockPool
from qwenkit.engine.fair import FairQueue
from qwenkit.engine.prefix import extend_keys
from qwenkit.engine.request import FinishReason, Request

MOST_PREFILLING = 8
"""Prompts that may be under way at once, when they are longer than the budget."""


@dataclass(slots=True)
class Span:
    """`count` tokens of one request from position `start`, the last of them `drafts` that it does
    not have yet. `samples`: its last row draws the next token, and each row before a draft token
    draws what the draft should be. `passed`: how many drafts were right, once that is known.
    """

    request: Request
    start: int
    count: int
    samples: bool
    drafts: list[int] = field(default_factory=list)
    passed: int = 0

    def drop_drafts(self) -> None:
        """Guess nothing after all."""
        self.count -= len(self.drafts)
        self.drafts = []


@dataclass(slots=True)
class Plan:
    """One forward: the spans in batch order. And what happened on the way: `paused` requests have
    lost their blocks, `late` ones have ended because their deadline passed.
    """

    spans: list[Span] = field(default_factory=list)
    paused: list[Request] = field(default_factory=list)
    late: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(span.count for span in self.spans)

    @property
    def shape(self) -> tuple[int, int]:
        """How many sequences decode, and how many tokens of prompts there are."""
        decoding = prompts = 0
        for span in self.spans:
            if span.samples and span.count == 1 + len(span.drafts):
                decoding += 1
            else:
                prompts += span.count
        return decoding, prompts

    @property
    def sampling(self) -> list[Request]:
        """The requests that draw a token, in batch order."""
        return [span.request for span in self.spans if span.samples]


class Scheduler:
    """Waiting, running and paused requests over one block pool.

    `running` is in order of admission. `share_prefixes`: whether cached beginnings are used.
    `prefill_limit(n, w)`: tokens of prompts in a step in which n sequences decode, while w others
    could be computing their prompts.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_sequences: int,
        share_prefixes: bool = True,
        prefill_limit: Callable[[int, int], int] | None = None,
    ) -> None:
        if not 1 <= max_sequences <= max_batch_tokens:
            raise ValueError(
                f"max_batch_tokens {max_batch_tokens} must be at least "
                f"max_sequences {max_sequences} ≥ 1"
            )
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.share_prefixes = share_prefixes
        self.prefill_limit = prefill_limit or (lambda decoding, waiting: max_batch_tokens)
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self.paused: deque[Request] = deque()
        self.num_preemptions = 0
        self.num_prompt_tokens = self.num_cached_tokens = self.num_drawn_tokens = 0
        self._lacks_room = False  # whoever comes next could not be given blocks
        self._underway: set[bytes] = set()  # keys of blocks that running prompts will fill

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.paused or len(self.waiting))

    def fits(self, request: Request) -> bool:
        """Whether the empty cache could hold it; what does not fit would wait for ever."""
        return self.pool.blocks_for(request.capacity) <= self.pool.num_blocks

    def add(self, request: Request) -> None:
        """Queue a request that `fits`."""
        assert self.fits(request) and request.num_prompt > 0
        self.waiting.add(request)

    def schedule(self, now: float = 0.0) -> Plan:
        """The next step's plan at the moment `now` of the monotonic clock; without work it has no
        spans. Nothing is marked as computed before `commit`.
        """
        plan = Plan(late=self.waiting.late(now))
        for request in plan.late:
            self.finish(request, "error")
        self._make_room(plan)
        prefilling = []
        for request in self.running:
            if request.num_pending == 1:
                plan.spans.append(Span(request, request.num_computed, 1, True))
            else:
                prefilling.append(request)
        if not (prefilling or self.paused or len(self.waiting)):
            return plan
        budget = self.max_batch_tokens - len(plan.spans)
        if plan.spans:
            waiting = len(prefilling)
            if not self._lacks_room:
                places = self.max_sequences - len(self.running)
                waiting += min(len(self.waiting) + len(self.paused), places)
            budget = min(budget, self.prefill_limit(len(plan.spans), waiting))
        if not plan.paused:
            self._admit(prefilling, budget)
        _divide(plan, prefilling, budget)
        return plan

    def grow(self, request: Request, count: int) -> int:
        """Room for up to `count` draft tokens behind the next token of a decoding request; less
        when blocks are short, since nobody shall be paused for a guess.
        """
        size, needed = self.pool.block_size, request.num_computed + 1
        missing = self.pool.blocks_for(needed + count) - len(request.blocks)
        spare = self.pool.num_free - len(self.running)
        if missing > 0 and spare > 0:
            request.blocks += self.pool.allocate(min(missing, spare)) or []
        return max(min(count, len(request.blocks) * size - needed), 0)

    def _make_room(self, plan: Plan) -> None:
        """A slot for the next token of everyone who decodes, the oldest first; the youngest pay."""
        at = 0
        while at < len(self.running):
            request = self.running[at]
            missing = self.pool.blocks_for(request.num_computed + 1) - len(request.blocks)
            if request.num_pending > 1 or missing <= 0:
                at += 1
            elif (blocks := self.pool.allocate(missing)) is not None:
                request.blocks += blocks
                at += 1
            else:
                plan.paused.append(self._pause())

    def _pause(self) -> Request:
        request = self.running.pop()
        self._let_go(request)
        request.num_computed = 0
        self.paused.appendleft(request)
        self.num_preemptions += 1
        return request

    def _admit(self, prefilling: list[Request], budget: int) -> None:
        """Start requests while there is something to compute with, a place and room for them."""
        self._lacks_room = False
        pending = sum(request.num_pending for request in prefilling)
        while (
            budget > 0
            and len(self.running) < self.max_sequences
            and (pending < budget or len(prefilling) < MOST_PREFILLING)
        ):
            request = self._next()
            if request is None:
                return
            prefilling.append(request)
            pending += request.num_pending

    def _next(self) -> Request | None:
        """Admit one more: whoever was paused first, else whose turn it is. Nobody overtakes a
        request that only lacks room; one that waits for another's blocks is no obstacle.
        """
        if self.paused:
            request = self.paused[0]
            if not self._start(request):
                return None
            self.paused.popleft()
            return request
        for request in self.waiting.candidates():
            if self._twin_underway(request):
                continue
            if not self._start(request):
                return None
            self.waiting.remove(request)
            self.waiting.charge(request.tenant, request.num_pending)
            request.started = True
            return request
        return None

    def _start(self, request: Request) -> bool:
        """Give a request blocks for all that it has; False when there are too few, those left aside
        that the running ones will want next.
        """
        size = self.pool.block_size
        keys: Sequence[bytes] = ()
        if self.share_prefixes:  # the last token is always computed: its logits are wanted
            keys = extend_keys(request, size, (len(request.token_ids) - 1) // size)
        shared = self.pool.match(keys)
        count = self.pool.blocks_for(len(request.token_ids))
        spare = len(self.running)
        short = spare and self.pool.num_free - spare < count - len(shared)
        blocks = None if short else self.pool.allocate(count, shared)
        if blocks is None:
            self._lacks_room = True
            return False
        request.blocks = blocks
        request.num_computed = len(shared) * size
        request.num_published = len(shared)
        if not request.started:
            request.num_cached = request.num_computed
            self.num_prompt_tokens += request.num_prompt
            self.num_cached_tokens += request.num_cached
        self._underway.update(keys[len(shared) :])
        self.running.append(request)
        return True

    def _twin_underway(self, request: Request) -> bool:
        if not self._underway:
            return False
        size = self.pool.block_size
        for key in extend_keys(request, size, (request.num_prompt - 1) // size):
            if not self.pool.has(key):
                return key in self._underway
        return False

    def commit(self, plan: Plan, tokens: Sequence[int | None]) -> None:
        """Book a computed plan. `tokens[i]` is what `plan.sampling[i]` drew behind the draft tokens
        that passed; None ends it with "error".

        A request that ends leaves the queues and gives its blocks back; its `finish_reason` says
        why.
        """
        drawn = iter(tokens)
        for span in plan.spans:
            request = span.request
            token = next(drawn) if span.samples else None
            if request.finish_reason is not None:
                continue
            if span.samples and token is None:
                self.finish(request, "error")
                continue
            request.token_ids += span.drafts[: span.passed]
            request.num_computed = span.start + span.count - len(span.drafts) + span.passed
            self._publish(request)
            if token is None:
                continue
            request.token_ids.append(token)
            self.num_drawn_tokens += 1 + span.passed
            self.waiting.charge(request.tenant, 1 + span.passed)
            if token in request.params.stop_token_ids:
                self.finish(request, "stop")
            elif request.num_output >= request.params.max_tokens:
                self.finish(request, "length")

    def _publish(self, request: Request) -> None:
        full = request.num_computed // self.pool.block_size
        if full == request.num_published or not self.share_prefixes:
            return
        keys = extend_keys(request, self.pool.block_size, full)
        for i in range(request.num_published, full):
            self.pool.publish(request.blocks[i], keys[i])
            self._underway.discard(keys[i])
        request.num_published = full

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Take a request out of the queues, whatever its state; again changes nothing."""
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request in self.running:
            self.running.remove(request)
        elif request in self.paused:
            self.paused.remove(request)
        else:
            self.waiting.remove(request)
        self.waiting.left(request)
        if reason == "error":  # whatever went wrong, nobody else shall find it in the cache
            self.pool.forget(request.blocks)
        self._let_go(request)

    def _let_go(self, request: Request) -> None:
        self._underway.difference_update(request.block_keys[request.num_published :])
        self.pool.free(request.blocks)
        request.blocks = []
        request.num_published = 0


def _divide(plan: Plan, prefilling: list[Request], budget: int) -> None:
    """Chunks of the prompts, in order of admission. The first one gets half of the budget, then the
    shortest get what they need, and what is left is the first one's again.
    """
    if not prefilling:
        return
    first, *others = prefilling
    counts = {id(first): min(first.num_pending, -(-budget // 2))}
    left = budget - counts[id(first)]
    for request in sorted(others, key=lambda request: request.num_pending):
        counts[id(request)] = min(request.num_pending, left)
        left -= counts[id(request)]
    counts[id(first)] += min(left, first.num_pending - counts[id(first)])
    for request in prefilling:
        count = counts[id(request)]
        if count:
            start = request.num_computed
            plan.spans.append(Span(request, start, count, count == request.num_pending))
