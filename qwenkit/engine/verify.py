"""From the logits of a step to its tokens: one for each request, and more where draft tokens were
right.

Place after place, each row is drawn from by the rules of its request, with the tokens before it in
place: penalties, grammar, `min_tokens`, random number and log-probabilities are what they would be
in a step of its own. A draft token that is what was drawn opens the next place, anything else ends
the request's step. Legend: S sampling spans, M rows (one a span and one for each draft token).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qwenkit.engine.sampler import Draw, Sampler
from qwenkit.engine.scheduler import Span


def verify(sampler: Sampler, spans: Sequence[Span], logits: Tensor) -> list[list[Draw]]:
    """The draws of each of the sampling spans, at least one: those that equal its draft tokens, and
    the one that ends them. `logits` (M, V) are changed in place.

    The requests are left as they were; `Scheduler.commit` books the tokens.
    """
    if not any(span.drafts for span in spans):
        return [[draw] for draw in sampler.sample([span.request for span in spans], logits)]
    draws: list[list[Draw]] = [[] for _ in spans]
    firsts, n = [], 0
    for span in spans:
        firsts.append(n)
        n += 1 + len(span.drafts)
    before = [len(span.request.token_ids) for span in spans]
    place, alive = 0, list(range(len(spans)))
    try:
        while alive:
            rows = [firsts[i] + place for i in alive]
            found = sampler.sample([spans[i].request for i in alive], _rows(logits, rows))
            for i, draw in zip(alive, found, strict=True):
                draws[i].append(draw)
            alive = [i for i in alive if _goes_on(spans[i], draws[i])]
            for i in alive:
                spans[i].request.token_ids.append(spans[i].drafts[place])
            place += 1
    finally:
        for span, count in zip(spans, before, strict=True):
            del span.request.token_ids[count:]
            if alive:  # something failed on the way; it will be tried again from here
                sampler.rewind(span.request)
    for span, own in zip(spans, draws, strict=True):
        span.passed = len(own) - 1
    return draws


def _goes_on(span: Span, draws: list[Draw]) -> bool:
    place, token = len(draws) - 1, draws[-1].token
    if place == len(span.drafts) or token != span.drafts[place]:
        return False
    return token not in span.request.params.stop_token_ids


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    """Those rows; without a copy where they lie together."""
    first, count = rows[0], len(rows)
    together = rows[-1] - first + 1 == count
    return logits[first : first + count] if together else logits[rows]
