"""How many prompt tokens a step may compute while others wait for their next token. Plain Python.

Whoever decodes feels a prompt beside it as a longer gap between tokens. `STALL` bounds that gap as
a multiple of a step without prompts: from the times of past steps it is learned what such a step
takes and what a prompt token adds, and so how many may be added. A step that only decodes is asked
for now and then (`limit` 0), so that the measure does not grow old.
"""

from __future__ import annotations

STALL = 1.8
FRESH = 32
"""Mixed steps after which a step without prompts is measured again."""
RISE, FALL = 0.2, 0.6
"""Weight of the newest time in a running mean. What disturbs a measure makes it longer: so a longer
time counts less, and as three times the mean at most.
"""


class Pace:
    """`most` is the limit that nothing exceeds."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._step: float | None = None
        self._token: float | None = None
        self._decoding = self._mixed = 0  # at the last measure; steps since

    def limit(self, decoding: int) -> int:
        """Prompt tokens for a step in which `decoding` sequences get a token each."""
        if not decoding:
            return self.most
        alike = 0.8 * decoding <= self._decoding <= 1.25 * decoding
        if self._step is None or self._mixed >= FRESH or not alike:
            return 0
        if self._token is None:
            return min(FRESH, self.most)
        return max(1, min(int((STALL - 1) * self._step / self._token), self.most))

    def observe(self, decoding: int, prefilling: int, seconds: float) -> None:
        """A step with so many decoding sequences and prompt tokens took so long."""
        if decoding and not prefilling:
            self._step = _mean(self._step if decoding == self._decoding else None, seconds)
            self._decoding, self._mixed = decoding, 0
        elif not decoding:
            if self._token is None and prefilling:
                self._token = seconds / prefilling  # too much: all that a step costs is in it
        elif self._step is not None:
            self._token = _mean(self._token, max(seconds - self._step, 1e-6) / prefilling)
            self._mixed += 1


def _mean(mean: float | None, value: float) -> float:
    if mean is None:
        return value
    weight = RISE if value > mean else FALL
    return mean + weight * (min(value, 3 * mean) - mean)
