"""What is asked of the engine and what comes back: token ids in, token ids out.

`SamplingParams` is frozen and checked when it is built, so that nothing after it meets a NaN
temperature. Ids of the vocabulary (prompt, `logit_bias`, `stop_token_ids`) are checked by
`Engine.check`, which knows it. The arithmetic of a request's life (what is computed, what is left)
stands here as properties. Not covered: text, stop strings and `n` (see `qwenkit.llm`, which makes
one request for each sample).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from qwenkit.errors import RequestError

if TYPE_CHECKING:
    from qwenkit.model.lora import Adapter

FinishReason = Literal["stop", "length", "abort", "error"]
ErrorCode = Literal["not_finite", "out_of_memory", "failed", "grammar", "timeout", "closed"]
"""Why a request ended with "error" or "abort": what the logits were, memory, a failing kernel or
another bug, its grammar allows no token or became too complex, its deadline passed while it waited,
the engine was closed.
"""

GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing logits by it would overflow float32."""
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_IDS = 64
MAX_TOKENS = 1 << 24


@dataclass(frozen=True)
class SamplingParams:
    """How one completion is drawn.

    Ranges, both ends included unless said otherwise; RequestError names the parameter outside:

        max_tokens           1 … 2**24
        min_tokens           0 … max_tokens; before it, stop ids cannot be drawn
        temperature          0 … 100; 0 (and anything below 1e-5) is greedy
        top_k                1 and more; 0 or -1 is off
        top_p                above 0 … 1
        min_p                0 … 1
        repetition_penalty   0.01 … 100, over prompt and output (arXiv 1909.05858, as Transformers)
        presence_penalty     -2 … 2, over the output (OpenAI's definition)
        frequency_penalty    -2 … 2, over the output (OpenAI's definition)
        seed                 -2**63 … 2**63 - 1; the same seed draws the same random numbers
                             whatever else is in the batch
        logit_bias           {token id: -100 … 100}, at most 1024 entries
        stop_token_ids       at most 64
        logprobs             None, or 0 … 20 most likely tokens beside the drawn one's own
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, -1, 2**63 - 1)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias must map at most {MAX_LOGIT_BIAS} token ids to numbers.",
                param="logit_bias",
            )
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1, what="a token id")
            _number("logit_bias", bias, -100.0, 100.0)
        if isinstance(self.stop_token_ids, str) or not isinstance(self.stop_token_ids, Sequence):
            raise RequestError(
                "stop_token_ids must be a list of token ids.", param="stop_token_ids"
            )
        if len(self.stop_token_ids) > MAX_STOP_IDS:
            raise RequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} entries; "
                f"at most {MAX_STOP_IDS} are taken.",
                param="stop_token_ids",
            )
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1, what="a token id")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    @cached_property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @cached_property
    def penalised(self) -> bool:
        """Whether the tokens seen so far change the logits."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    @cached_property
    def plain(self) -> bool:
        """Whether the largest logit is taken as it is, and nothing else is wanted."""
        changed = self.penalised or self.logit_bias or self.min_tokens
        return self.greedy and not changed and self.logprobs is None

    def replace(self, **changes: Any) -> SamplingParams:
        """A checked copy with some values changed."""
        return dataclasses.replace(self, **changes)


class Matcher(Protocol):
    """One sequence's place in its grammar."""

    def fill(self, row: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """Write the mask of the next token, (W): bit i says whether token i may come.

        Errors: EngineError when none may, or it takes too long to find out.
        """

    def accept(self, token: int) -> bool:
        """Go on with a token; False, and nothing changed, when it may not come."""

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens."""


@dataclass(eq=False)
class Request:
    """One sequence on its way through the engine. Down to `media` the fields are the caller's.

    tenant: whose it is: tenants have turns, and never share cached beginnings.
    deadline: the moment of `time.monotonic` after which it need not be started any more.
    adapter: what its tokens are computed with beside the model; it is kept by those who use it.
    media: (position of its first token, SHA-256 over its bytes, shape and type) of each image.
    matcher: the grammar that its output is held to (`qwenkit.engine.grammar`), for it alone.
    """

    id: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    tenant: str = ""
    deadline: float | None = None
    adapter: Adapter | None = None
    media: Sequence[tuple[int, bytes]] = ()
    matcher: Matcher | None = None
    scaled: bool = field(default=False, init=False)
    """Whether its positions use the YaRN frequencies: prompt + max_tokens exceed the original
    context.
    """
    token_ids: list[int] = field(default_factory=list, init=False)
    """Prompt and output so far."""
    num_computed: int = field(default=0, init=False)
    """How many of `token_ids` have their keys and values in the cache."""
    num_cached: int = field(default=0, init=False)
    """Tokens of the prompt that need not be computed: an earlier request left them in the cache."""
    blocks: list[int] = field(default_factory=list, init=False)
    block_keys: list[bytes] = field(default_factory=list, init=False)
    """Of its full blocks, as far as somebody has asked (`qwenkit.engine.prefix`)."""
    num_published: int = field(default=0, init=False)
    """Blocks from the start that others can find."""
    started: bool = field(default=False, init=False)
    """Whether it has ever been admitted; it may have been paused since."""
    num_matched: int = field(default=0, init=False)
    """Tokens of the output that the matcher has accepted."""
    num_drafted: int = field(default=0, init=False)
    """Draft tokens that were guessed for it and checked."""
    num_accepted: int = field(default=0, init=False)
    """Those of them that were right."""
    finish_reason: FinishReason | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_ids)
        self.num_prompt = len(self.token_ids)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens known but not yet in the cache: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.num_computed

    @property
    def waits(self) -> bool:
        """Whether nothing has been done for it yet."""
        return not self.started and self.finish_reason is None

    @property
    def capacity(self) -> int:
        """Most tokens that it can ever have in the cache; the last drawn one is never fed back."""
        return self.num_prompt + self.params.max_tokens - 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities at one step, of the model's own distribution: before penalties, bias and
    temperature.

    `top` holds the most likely tokens in falling order, `params.logprobs` of them.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class RequestOutput:
    """What one step brought for one request.

    `new_ids` includes the stop id that ended it. `logprobs` has one entry for each new id if they
    were asked for. `error` is one line for finish_reason "error", `code` its kind. `num_cached` are
    the tokens of the prompt that were found in the cache; `num_drafted` and `num_accepted` are the
    draft tokens of the request so far, and those of them that were right.
    """

    id: str
    new_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    code: ErrorCode | None = None
    num_cached: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


def _integer(name: str, value: object, low: int, high: int, what: str = "an integer") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} is {_shown(value)}; it must be {what}.", param=name)
    if not low <= value <= high:
        raise RequestError(
            f"{name} is {_shown(value)}; it must be from {low} to {high}.", param=name
        )


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name} is {_shown(value)}; it must be a number.", param=name)
    inside = low < value <= high if open_low else low <= value <= high
    if not inside or not math.isfinite(value):
        bounds = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise RequestError(f"{name} is {_shown(value)}; it must be {bounds}.", param=name)


def _shown(value: object) -> str:
    """A value for an error message: short, and safe for integers with thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
