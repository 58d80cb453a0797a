"""Which tokens the next forward computes. Plain Python, no torch: testable in microseconds.

Each step is one ragged batch under a token budget. Sequences that decode come first (one token
each), so a long prompt never makes the others wait; what is left of the budget goes to prompts, in
chunks, oldest first; then waiting requests are admitted, strictly in order of arrival.

Admission takes all the blocks that a request can ever need (prompt + max_tokens - 1 tokens), so a
running sequence never runs out and nothing is ever evicted. The price: a request with a large
max_tokens holds room it may not use. Not covered: preemption, prefix sharing, draft tokens,
priorities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenkit.engine.blocks import BlockPool
from qwenkit.engine.request import FinishReason, Request


@dataclass(slots=True)
class Span:
    """`count` tokens of one request from position `start`. `samples`: its last row draws the next
    token.
    """

    request: Request
    start: int
    count: int
    samples: bool


@dataclass(slots=True)
class Plan:
    """One forward: the spans in batch order."""

    spans: list[Span] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(span.count for span in self.spans)

    @property
    def sampling(self) -> list[Request]:
        """The requests that draw a token, in batch order."""
        return [span.request for span in self.spans if span.samples]


class Scheduler:
    """Waiting and running requests over one block pool."""

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_sequences: int) -> None:
        if not 1 <= max_sequences <= max_batch_tokens:
            raise ValueError(
                f"max_batch_tokens {max_batch_tokens} must be at least "
                f"max_sequences {max_sequences} ≥ 1"
            )
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def fits(self, request: Request) -> bool:
        """Whether the empty cache could hold it; what does not fit would wait for ever."""
        return self.pool.blocks_for(request.capacity) <= self.pool.num_blocks

    def add(self, request: Request) -> None:
        """Queue a request that `fits`."""
        assert self.fits(request) and request.num_prompt > 0
        self.waiting.append(request)

    def schedule(self) -> Plan:
        """The next step's plan; without work it has no spans. Nothing is marked as computed before
        `commit`.
        """
        plan = Plan()
        budget = self.max_batch_tokens
        prefilling = []
        for request in self.running:
            if request.num_pending == 1:
                plan.spans.append(Span(request, request.num_computed, 1, True))
                budget -= 1
            else:
                prefilling.append(request)
        for request in prefilling:
            budget -= self._chunk(plan, request, budget)
        while self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            request = self.waiting[0]
            blocks = self.pool.allocate(self.pool.blocks_for(request.capacity))
            if blocks is None:
                break  # first come, first served: a small request behind does not overtake
            request.blocks = blocks
            self.running.append(self.waiting.popleft())
            budget -= self._chunk(plan, request, budget)
        return plan

    def _chunk(self, plan: Plan, request: Request, budget: int) -> int:
        count = min(request.num_pending, budget)
        if count > 0:
            plan.spans.append(
                Span(request, request.num_computed, count, count == request.num_pending)
            )
        return count

    def commit(self, plan: Plan, tokens: Sequence[int | None]) -> None:
        """Book a computed plan. `tokens[i]` is what `plan.sampling[i]` drew; None ends it with
        "error".

        A request that ends leaves the queues and gives its blocks back; its `finish_reason` says
        why.
        """
        drawn = iter(tokens)
        for span in plan.spans:
            request = span.request
            token = next(drawn) if span.samples else None
            if request.finish_reason is not None:
                continue
            request.num_computed = span.start + span.count
            if not span.samples:
                continue
            if token is None:
                self.finish(request, "error")
                continue
            request.token_ids.append(token)
            if token in request.params.stop_token_ids:
                self.finish(request, "stop")
            elif request.num_output >= request.params.max_tokens:
                self.finish(request, "length")

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Take a request out of the queues, whatever its state; again changes nothing."""
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self.pool.free(request.blocks)
        request.blocks = []
