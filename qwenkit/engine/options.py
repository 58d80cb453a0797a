"""The engine's options as a type, for those who pass them through. `Engine` says what they mean."""

from __future__ import annotations

from typing import Literal, TypedDict


class EngineOptions(TypedDict, total=False):
    """Keywords of `Engine` that a user chooses; what is absent has the default there."""

    kv_bytes: int | None
    block_size: int
    kv_dtype: str
    max_batch_tokens: int
    max_sequences: int
    max_model_len: int | None
    prefix_cache: bool
    deterministic: bool
    speculate: Literal["lookup", "draft"] | None
