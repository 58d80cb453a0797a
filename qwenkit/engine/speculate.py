"""Draft tokens: a cheap guess at how a request goes on, which one forward of the model then checks.
Plain Python.

A step that computes a request's last token and k draft tokens behind it costs less than k + 1 steps
(Leviathan 2023, arXiv 2211.17192). The sampler draws at each of these places from the model's own
distribution, with the random number that belongs to the place; a draft token is right when it is
what was drawn, and the first draw that differs replaces it and ends the step. So the output is what
it would be without any draft, greedy or seeded, and its distribution is the model's: a draft that
does not depend on chance passes with just the probability that the model gives it, which is the
rule of that paper for such drafts. A draft that was drawn with the same random number passes more
often (`qwenkit.engine.draft`).

`Speculation` decides how many draft tokens each request gets. It keeps a score of how many passed
and takes one more only while that raises the tokens to be expected for the cost of the step. Text
that cannot be guessed soon costs next to nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenkit.engine.request import Request
from qwenkit.engine.scheduler import Plan, Scheduler, Span

MOST_DRAFTS = 16
"""Draft tokens of one request in a step."""
PROBE, RARELY = 8, 64
"""Chances to draft that a request with a bad score lets pass before it tries again; twice as many
after each such try in vain, up to the second number.
"""
WEIGHT, MEMORY = 2.0, 0.9
"""The first guess counts as this many tries; older tries count less with each new verdict."""


class Proposer:
    """Something that guesses, from nothing but the requests."""

    price = 1.0
    """What one draft token costs, in rows of the model's batch."""

    def follow(self, plan: Plan) -> None:
        """See every plan before it gets draft tokens."""

    def find(self, request: Request, most: int) -> tuple[int, float]:
        """How many tokens it could propose, and how likely the first one passes as a rule; the
        score of each such likelihood is kept apart.
        """
        raise NotImplementedError

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        """Tokens for each request, no more than asked for; `find` has just promised as many."""
        raise NotImplementedError

    def learn(self, span: Span) -> None:
        """`span.passed` of a span's draft tokens were right."""

    def forget(self, request: Request) -> None:
        """Drop what is kept of a request that has ended."""


class Lookup(Proposer):
    """Guesses that the text goes on as it did the last time that it came to these words (prompt
    lookup, Saxena 2023). It looks for the longest of a few beginnings in prompt and output.
    """

    LENGTHS = (12, 6, 4, 3, 2)
    SURE = 4
    """From this many equal tokens on a guess is likely to be right."""

    def __init__(self) -> None:
        self._texts: dict[str, array[int]] = {}
        self._found: dict[str, int] = {}

    def find(self, request: Request, most: int) -> tuple[int, float]:
        text = self._texts.setdefault(request.id, array("i"))
        text.extend(request.token_ids[len(text) :])
        data = text.tobytes()
        for length in self.LENGTHS:
            at = _last_before_end(data, length * text.itemsize, text.itemsize)
            if at is not None:
                self._found[request.id] = at // text.itemsize + length
                return most, 0.8 if length >= self.SURE else 0.4
        return 0, 0.0

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        return [self._copy(request, count) for request, count in wanted]

    def _copy(self, request: Request, count: int) -> list[int]:
        text = self._texts[request.id]
        start = self._found[request.id]
        period = len(text) - start  # a guess that reaches the end of the text goes round again
        return [text[start + i % period] for i in range(count)]

    def forget(self, request: Request) -> None:
        self._texts.pop(request.id, None)
        self._found.pop(request.id, None)


def _last_before_end(data: bytes, width: int, step: int) -> int | None:
    """Where the last `width` bytes stand the time before, at a multiple of `step`."""
    if len(data) <= width:
        return None
    tail, end = data[-width:], len(data) - step
    while (at := data.rfind(tail, 0, end)) >= 0:
        if at % step == 0:
            return at
        end = at + width - 1
    return None


@dataclass(slots=True)
class _Score:
    """How many draft tokens of one kind have passed, of those that were put to the test."""

    passed: float
    tried: float = WEIGHT
    skipped: int = 0
    patience: int = PROBE

    @property
    def rate(self) -> float:
        return self.passed / self.tried

    def learn(self, drafted: int, passed: int) -> None:
        """Behind the first wrong one nothing was tested."""
        self.passed = self.passed * MEMORY + passed
        self.tried = self.tried * MEMORY + min(passed + 1, drafted)
        if passed:
            self.patience = PROBE
        elif self.skipped:
            self.patience = min(self.patience * 2, RARELY)
        self.skipped = 0


@dataclass(slots=True)
class _Offer:
    """A span that could take up to `most` draft tokens."""

    span: Span
    most: int
    score: _Score
    count: int = field(default=0)


class Speculation:
    """Puts draft tokens into plans and learns from what became of them.

    fixed_rows: what a forward costs beside its rows, in rows: reading the weights, mostly.
    """

    def __init__(self, proposer: Proposer, fixed_rows: float) -> None:
        self.proposer, self.fixed_rows = proposer, fixed_rows
        self.num_drafted = self.num_accepted = 0
        self._scores: dict[str, dict[float, _Score]] = {}
        self._asked: dict[str, _Score] = {}

    def extend(self, plan: Plan, scheduler: Scheduler) -> None:
        """Give the spans that decode their draft tokens. Never more than there is room for in the
        batch and in the cache.
        """
        self.proposer.follow(plan)
        decoding = [span for span in plan.spans if span.samples and span.count == 1]
        if not decoding:
            return
        offers = [offer for span in decoding if (offer := self._offer(span)) is not None]
        self._divide(offers, len(decoding))
        budget = scheduler.max_batch_tokens - plan.num_tokens
        for offer in offers:
            offer.count = scheduler.grow(offer.span.request, min(offer.count, budget))
            budget -= offer.count
        taken = [offer for offer in offers if offer.count]
        drafts = self.proposer.propose([(o.span.request, o.count) for o in taken])
        for offer, tokens in zip(taken, drafts, strict=True):
            offer.span.drafts, offer.span.count = tokens, 1 + len(tokens)
            self._asked[offer.span.request.id] = offer.score

    def _offer(self, span: Span) -> _Offer | None:
        request = span.request
        left = request.params.max_tokens - request.num_output - 1
        if left <= 0:
            return None
        most, likely = self.proposer.find(request, min(left, MOST_DRAFTS))
        if not most:
            return None
        scores = self._scores.setdefault(request.id, {})
        if likely not in scores:
            scores[likely] = _Score(passed=likely * WEIGHT)
        return _Offer(span, most, scores[likely])

    def _divide(self, offers: list[_Offer], num_decoding: int) -> None:
        """The j-th draft token of a request passes with probability rate ** j. Take the likeliest
        of all, one after the other, while each is worth more than the step's average so far.
        """
        price = self.proposer.price
        values = [
            (offer.score.rate**j, i)
            for i, offer in enumerate(offers)
            for j in range(1, offer.most + 1)
        ]
        values.sort(reverse=True)
        tokens, cost = float(num_decoding), self.fixed_rows + num_decoding
        for value, i in values:
            if value * cost < tokens * price:
                break
            offers[i].count += 1
            tokens += value
            cost += price
        for offer in offers:
            if not offer.count:
                offer.score.skipped += 1
                offer.count = int(offer.score.skipped >= offer.score.patience)

    def learn(self, plan: Plan) -> None:
        """See what became of the draft tokens of a plan."""
        for span in plan.spans:
            if not span.drafts:
                continue
            self.num_drafted += len(span.drafts)
            self.num_accepted += span.passed
            span.request.num_drafted += len(span.drafts)
            span.request.num_accepted += span.passed
            self.proposer.learn(span)
            score = self._asked.pop(span.request.id, None)
            if score is not None:
                score.learn(len(span.drafts), span.passed)

    def forget(self, request: Request) -> None:
        """Drop what is kept of a request that has ended."""
        self._scores.pop(request.id, None)
        self._asked.pop(request.id, None)
        self.proposer.forget(request)
