"""The front door: `LLM`, and what it gives back."""

from qwenkit.llm.embed import Embeddings, Pooling
from qwenkit.llm.front import LLM
from qwenkit.llm.results import (
    ChatResult,
    Choice,
    Completion,
    Logprob,
    StreamDelta,
    Timing,
    TokenProb,
    Usage,
)
from qwenkit.llm.sampling import Sampling
from qwenkit.llm.score import Scores
from qwenkit.model.lora import Adapter

__all__ = [
    "Adapter",
    "ChatResult",
    "Choice",
    "Completion",
    "Embeddings",
    "LLM",
    "Logprob",
    "Pooling",
    "Sampling",
    "Scores",
    "StreamDelta",
    "Timing",
    "TokenProb",
    "Usage",
]
