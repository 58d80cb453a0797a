"""What an operator wants to know of an engine, at one moment. Plain Python."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Gauges of now, and counters since the engine was made.

    running, waiting: requests; a paused one counts as waiting.
    kv_usage: share of the cache's blocks that requests hold, 0 … 1; content that is only kept for
        later does not count.
    prompt_tokens: of the requests that were admitted. cached_tokens: those of them that were found
        in the cache. generation_tokens: drawn. preemptions: how often a request was paused.
    draft_tokens: guessed and checked. accepted_tokens: those of them that were right.
    running_adapters, waiting_adapters: numbers (`Adapter.id`) of those that such requests have.
    """

    running: int
    waiting: int
    kv_usage: float
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    preemptions: int
    draft_tokens: int = 0
    accepted_tokens: int = 0
    running_adapters: frozenset[int] = frozenset()
    waiting_adapters: frozenset[int] = frozenset()
