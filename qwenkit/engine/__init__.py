"""The engine: token ids in, token ids out, many requests at once. No text, no HTTP."""

from qwenkit.engine.driver import Driver
from qwenkit.engine.engine import Engine
from qwenkit.engine.options import EngineOptions
from qwenkit.engine.request import (
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)
from qwenkit.engine.stats import Stats

__all__ = [
    "Driver",
    "Engine",
    "EngineOptions",
    "FinishReason",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "Stats",
    "TokenLogprob",
]
