"""How many prompt tokens a step may compute while others wait for their next token. Plain Python.

Whoever decodes feels a prompt beside it as a longer gap between tokens. The number of prompt tokens
is steered so that such a step takes `STALL` times what it takes without any: up a little after a
step that was shorter, down more after one that was longer. Whoever decodes loses the same time in
all however it is spread, but others who wait behind a prompt gain by long steps: what a step may
take more grows with their share, `BEHIND` times as long where as many wait behind the first as
decode, and `CROWD` times at most. Nothing is assumed about the cost of a token: the first few
are often free, because the weights are read anyway. A step that only decodes is asked for now and
then (`limit` 0), so that the measure does not grow old.
"""

from __future__ import annotations

STALL, BEHIND, CROWD = 1.8, 4.0, 16.0
FRESH = 32
"""Mixed steps after which a step without prompts is measured again."""
DOWN, UP = 0.6, 1.15
"""Most that one step changes the number of tokens."""
RISE, FALL = 0.2, 0.6
"""Weight of the newest time in the running mean. What disturbs a measure makes it longer: so a
longer time counts less, and as three times the mean at most.
"""


class PrefillPace:
    """`most` is the limit that nothing exceeds."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._step: float | None = None  # seconds of a step that only decodes
        self._token: float | None = None  # seconds of a prompt token when nobody decodes
        self._tokens: float | None = None  # the limit beside decoding
        self._decoding = self._mixed = 0  # at the last measure; steps since
        self._crowd = 1.0  # how many times the usual excess the last step was allowed

    def limit(self, decoding: int, waiting: int = 1) -> int:
        """Prompt tokens for a step in which `decoding` sequences get a token each, while `waiting`
        others want their first one.
        """
        if not decoding:
            return self.most
        self._crowd = max(1.0, min(BEHIND * (waiting - 1) / decoding, CROWD))
        fewest = 0.8 if self._crowd == 1.0 else 0.5  # a crowd need not wait for a good measure
        alike = fewest * decoding <= self._decoding <= 1.25 * decoding
        if self._step is None or self._mixed >= FRESH or not alike:
            return 0
        if self._tokens is None:
            guess = (STALL - 1) * self._step / self._token if self._token else 1.0
            self._tokens = max(1.0, min(guess, self.most))
        return int(min(self._tokens * self._crowd, self.most))

    def observe(self, decoding: int, prefilling: int, seconds: float) -> None:
        """A step with so many decoding sequences and prompt tokens took so long."""
        if decoding and not prefilling:
            self._step = _mean(self._step if decoding == self._decoding else None, seconds)
            self._decoding, self._mixed = decoding, 0
        elif not decoding:
            if prefilling:
                self._token = seconds / prefilling
        elif self._step is not None and self._tokens is not None:
            self._mixed += 1
            excess = max(seconds / self._step - 1, 0.01)
            change = max(DOWN, min(((STALL - 1) * self._crowd / excess) ** 0.5, UP))
            if prefilling >= int(self._tokens * self._crowd) or change < 1:
                tokens = min(self._tokens, (prefilling + 1) / self._crowd) * change
                self._tokens = max(1.0, min(tokens, self.most))


def _mean(mean: float | None, value: float) -> float:
    if mean is None:
        return value
    weight = RISE if value > mean else FALL
    return mean + weight * (min(value, 3 * mean) - mean)
