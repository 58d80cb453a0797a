"""From what the caller asks and what the checkpoint suggests to the engine's `SamplingParams`.

Precedence: the caller's value, then generation_config.json, then neutral. Temperature 0 from the
caller is greedy, whatever the checkpoint says; without a caller's temperature a checkpoint with
`do_sample` false is greedy too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from qwenkit.config import GenerationConfig
from qwenkit.engine import SamplingParams
from qwenkit.errors import RequestError
from qwenkit.model.lora import Adapter

MAX_CHOICES = 128
MAX_STOP_STRINGS, MAX_STOP_CHARS = 16, 1024
MAX_TENANT_CHARS, MAX_TIMEOUT = 256, 1e9


class Sampling(TypedDict, total=False):
    """What every generating method takes by keyword; what is absent or None is the checkpoint's or
    the default.

    max_tokens: by default what is left of the context (of the original one, where YaRN would extend
        it), or
    generation_config's max_new_tokens. n: choices, each drawn for itself; with a seed, choice i
    uses seed + i. stop: up to 16 strings that end the text and are not part of it. stop_token_ids:
    the same for ids. ignore_eos: go on over the model's own end tokens. tenant: whose request it
    is: tenants have turns when many wait, and share no cached beginnings. queue_timeout: seconds
    that the request may wait before it is begun; then it ends with EngineError "timeout".
    response_format, regex, choice, grammar: what the answer must look like, one of them;
    tool_choice and parallel_tool_calls, only where there are messages: whether tools must be called
    (all six as in `qwenkit.prompt.constraint`). adapter: the name of one of `LLM.adapters`.
    The others are those of `qwenkit.engine.SamplingParams`.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    min_tokens: int | None
    logprobs: int | None
    n: int | None
    tenant: str | None
    queue_timeout: float | None
    response_format: Mapping[str, Any] | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    adapter: str | Adapter | None


SHAPE = (
    "response_format",
    "regex",
    "choice",
    "grammar",
    "tool_choice",
    "parallel_tool_calls",
)
"""The parameters that say what an answer looks like; `resolve` has nothing to do with them, nor
with `adapter`.
"""


@dataclass(frozen=True)
class Resolved:
    """`params` for choice 0; `n` choices; `stop` strings, which the engine does not know; `tenant`
    and `deadline` (a moment of `time.monotonic`) of the requests.
    """

    params: SamplingParams
    n: int
    stop: tuple[str, ...]
    tenant: str = ""
    deadline: float | None = None

    def choice(self, index: int) -> SamplingParams:
        """The params of choice `index`: its own seed, wrapped around at 2**63."""
        seed = self.params.seed
        if seed is None or index == 0:
            return self.params
        return self.params.replace(seed=(seed + index + 2**63) % 2**64 - 2**63)


def resolve(
    given: Mapping[str, Any], defaults: GenerationConfig, *, max_tokens: int, end_ids: Sequence[int]
) -> Resolved:
    """Merge and check. `max_tokens` is the default; `end_ids` are the model's own end tokens.

    Errors: RequestError naming the parameter that is unknown or out of range.
    """
    values = {k: v for k, v in given.items() if v is not None and k not in (*SHAPE, "adapter")}
    unknown = sorted(values.keys() - Sampling.__annotations__.keys())
    if unknown:
        known = ", ".join(sorted(Sampling.__annotations__))
        raise RequestError(f"{unknown[0]!r} is no parameter.", f"Use {known}.", param=unknown[0])
    n, stop = _count(values.pop("n", 1)), _stop_strings(values.pop("stop", ()))
    ignore_eos = values.pop("ignore_eos", False)
    if not isinstance(ignore_eos, bool):
        raise RequestError("ignore_eos must be true or false.", param="ignore_eos")
    tenant, deadline = _tenant(values.pop("tenant", "")), _deadline(values)
    values.setdefault("max_tokens", max_tokens)
    values.setdefault("repetition_penalty", defaults.repetition_penalty)
    values.setdefault("temperature", defaults.usual_temperature)
    values.setdefault("top_p", defaults.top_p)
    values.setdefault("top_k", defaults.top_k)
    extra = values.get("stop_token_ids", ())
    params = SamplingParams(**values)  # checks stop_token_ids before they are joined
    if not ignore_eos:
        params = params.replace(stop_token_ids=tuple(dict.fromkeys((*end_ids, *extra))))
    return Resolved(params, n, stop, tenant, deadline)


def _tenant(tenant: object) -> str:
    if not isinstance(tenant, str) or len(tenant) > MAX_TENANT_CHARS:
        raise RequestError(
            f"tenant must be a text of at most {MAX_TENANT_CHARS} characters.", param="tenant"
        )
    return tenant


def _deadline(values: dict[str, Any]) -> float | None:
    timeout = values.pop("queue_timeout", None)
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise RequestError("queue_timeout must be a number of seconds.", param="queue_timeout")
    return time.monotonic() + min(float(timeout), MAX_TIMEOUT)


def _count(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        raise RequestError(f"n must be an integer from 1 to {MAX_CHOICES}.", param="n")
    return n


def _stop_strings(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    good = isinstance(texts, Sequence) and len(texts) <= MAX_STOP_STRINGS
    if not good or not all(isinstance(t, str) and 0 < len(t) <= MAX_STOP_CHARS for t in texts):
        raise RequestError(
            f"stop must be at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters.",
            param="stop",
        )
    return tuple(texts)
