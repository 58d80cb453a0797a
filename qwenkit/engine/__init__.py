"""The engine: token ids in, token ids out, many requests at once. No text, no HTTP."""

from qwenkit.engine.driver import Driver
from qwenkit.engine.engine import Engine
from qwenkit.engine.request import (
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)

__all__ = [
    "Driver",
    "Engine",
    "FinishReason",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "TokenLogprob",
]
