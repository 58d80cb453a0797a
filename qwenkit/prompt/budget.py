"""What one rendering of a chat template may spend: time, characters, list entries.

Contract: a `Budget` is made active (`ACTIVE`) around compiling or rendering; everything that the
sandbox lets a template do asks it first, and `BoundError` stops the template. A budget belongs
to the thread that made it.

Not covered: memory that Python itself needs per value; the bounds are a few times smaller than what
a server can bear.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.exceptions import SecurityError

LIMIT_CHARS = 4 << 20
LIMIT_ITEMS = 100_000
LIMIT_SECONDS = 1.0
WORK_FACTOR = 32


_EMPTY: dict[str, str] = {}
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))


class BoundError(SecurityError):
    """The template ran too long or made something too large."""


class Budget:
    """What one rendering may still spend. Lives in the thread that renders."""

    def __init__(self, input_chars: int, items: int) -> None:
        self.max_chars = LIMIT_CHARS + 2 * input_chars
        self.max_items = LIMIT_ITEMS + items
        self._work = WORK_FACTOR * self.max_chars
        self._seconds = LIMIT_SECONDS + 1e-6 * input_chars
        self._cpu_end = time.thread_time() + self._seconds
        self._look = time.monotonic() + self._seconds
        self._sizes: dict[int, tuple[object, int]] = {}

    def tick(self) -> None:
        """Check the clock. Wall time is cheap to read; when it is used up, the CPU time decides."""
        if time.monotonic() > self._look:
            left = self._cpu_end - time.thread_time()
            if left <= 0:
                raise BoundError(f"it ran longer than {self._seconds:.1f} s")
            self._look = time.monotonic() + left

    def charge(self, chars: int) -> None:
        """Account for `chars` characters about to be made (or just made)."""
        self.tick()
        if chars > self.max_chars:
            raise BoundError(f"it makes a text or list larger than {self.max_chars} characters")
        self._work -= chars
        if self._work < 0:
            raise BoundError("it copies too much text")

    def count(self, items: int) -> None:
        """Account for a container of `items` entries."""
        self.tick()
        if items > self.max_items:
            raise BoundError(f"it makes a list longer than {self.max_items} entries")

    def size(self, value: object) -> int:
        """Characters and entries of a value, shared parts counted as often as they occur."""
        if isinstance(value, str):
            return 1 + len(value)
        if isinstance(value, (dict, list, tuple, set, frozenset)) or type(value) in _VIEWS:
            known = self._sizes.get(id(value))
            if known is None:
                parts: Iterable[object] = value  # type: ignore[assignment]
                total = 1 + sum(self.size(part) for part in parts)
                if isinstance(value, dict):
                    total += sum(self.size(part) for part in value.values())
                self._sizes[id(value)] = known = (value, total)
            return known[1]
        return 1 + value.bit_length() // 3 if isinstance(value, int) else 16

    def box(self, value: Any) -> Any:
        """Let a new container pass, if it is small enough."""
        self.count(len(value))
        self.charge(self.size(value))
        return value

    def text(self, value: object) -> str:
        """The printed form of a value, measured first."""
        if not isinstance(value, str):
            self.charge(self.size(value))
        return str(value)

    def take(self, values: Iterable[Any]) -> list[Any]:
        """List the values, checking clock and number."""
        taken: list[Any] = []
        for value in values:
            taken.append(value)
            self.count(len(taken))
        return taken

    def watch(self, values: Iterable[Any]) -> Iterator[Any]:
        """Pass the values on, checking the clock at each."""
        for value in values:
            self.tick()
            yield value


ACTIVE: contextvars.ContextVar[Budget] = contextvars.ContextVar("qwenkit_template_budget")
