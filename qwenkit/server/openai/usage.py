"""Usage, timings and log-probabilities as they stand in answers, and the books kept of them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel

from qwenkit.llm import Completion, Logprob, StreamDelta, Timing, TokenProb, Usage
from qwenkit.server.service import CHARS_A_TOKEN, Call, Service


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class UsageBody(BaseModel):
    """Tokens of a request; cached ones did not have to be computed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(BaseModel):
    """Where the time went, in milliseconds and tokens a second. The wait for a place is part of
    `prompt_ms`.
    """

    prompt_n: int
    cache_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


async def watched(
    service: Service, call: Call, deltas: AsyncGenerator[StreamDelta, None]
) -> AsyncGenerator[StreamDelta, None]:
    """The same pieces, with the times between them in the metrics and their end in the books. One
    that is given up is booked by its pieces, and the prompt by its size.
    """
    between, last, pieces = service.metrics.between, 0.0, 0
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                now, pieces = time.monotonic(), pieces + 1
                if last:
                    between.observe(now - last)
                last = now
                if delta.finish_reason is not None:
                    _end(service, call, delta.finish_reason)
                if delta.usage is not None and delta.timing is not None:
                    _book(service, call, delta.usage, delta.timing)
                    pieces = 0
                yield delta
    finally:
        if pieces:
            call.completion_tokens += pieces
            call.prompt_tokens += call.body_bytes // CHARS_A_TOKEN


def booked(service: Service, call: Call, result: Completion) -> None:
    """The books of an answer that was not streamed."""
    for choice in result.choices:
        _end(service, call, choice.finish_reason)
    _book(service, call, result.usage, result.timing)
    steps = result.usage.completion_tokens // len(result.choices) - 1
    if steps > 0:
        service.metrics.between.observe((result.timing.total - result.timing.first) / steps)


def _end(service: Service, call: Call, reason: str) -> None:
    call.finish_reason = reason
    service.metrics.finished(reason)


def _book(service: Service, call: Call, usage: Usage, timing: Timing) -> None:
    metrics = service.metrics
    call.prompt_tokens += usage.prompt_tokens
    call.completion_tokens += usage.completion_tokens
    call.first_token_s = timing.first
    metrics.first_token.observe(timing.first)
    metrics.whole.observe(timing.total)
    metrics.prompt.observe(usage.prompt_tokens)
    metrics.generation.observe(usage.completion_tokens)


def usage_body(usage: Usage) -> dict[str, Any]:
    """`UsageBody`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_body(usage: Usage, timing: Timing) -> dict[str, Any]:
    """`Timings`."""
    computed, drawn = usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
    first, rest = timing.first, timing.total - timing.first
    return {
        "prompt_n": computed,
        "cache_n": usage.cached_tokens,
        "prompt_ms": round(first * 1000, 3),
        "prompt_per_second": round(computed / first, 3) if first > 0 else 0.0,
        "predicted_n": drawn,
        "predicted_ms": round(rest * 1000, 3),
        "predicted_per_second": round(max(drawn - 1, 0) / rest, 3) if rest > 0 else 0.0,
    }


def _token(found: TokenProb) -> dict[str, Any]:
    return {"token": found.token, "logprob": found.logprob, "bytes": list(found.bytes)}


def chat_logprobs(found: Iterable[Logprob]) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    content = [{**_token(p), "top_logprobs": [_token(top) for top in p.top]} for p in found]
    return {"content": content, "refusal": None}
