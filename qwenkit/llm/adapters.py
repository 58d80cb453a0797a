"""The adapters of an `LLM` by name: loaded and unloaded while it answers.

    llm.adapters.load("sql", "path/to/folder")
    llm.chat("…", adapter="sql")
    llm.adapters.unload("sql")

A request holds the adapter that it began with. So unloading ends nothing: what runs goes on with
it, new requests do not find it, and its memory is free when the last one is done. A name that is
used again is another adapter, which shares nothing that is cached.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping

from qwenkit.errors import OptionError, RequestError
from qwenkit.model.adapter import read_adapter
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen

MAX_NAME = 256


class Adapters(Mapping[str, Adapter]):
    """From any thread. `model`: what they are for."""

    def __init__(self, model: Qwen) -> None:
        self._model, self._lock = model, threading.Lock()
        self._found: dict[str, Adapter] = {}

    def load(
        self, name: str, path: str | os.PathLike[str], *, replace: bool = False, most: int = 1024
    ) -> Adapter:
        """Read a folder in PEFT's format. `replace`: a name that is taken goes over to it; `most`
        adapters there may be. Whatever is wrong, nothing is changed.

        Errors: OptionError for the name; those of `qwenkit.model.adapter.read_adapter`.
        """
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            text = f"An adapter's name has 1 to {MAX_NAME} printable characters."
            raise OptionError(text, "Choose another one.")
        with self._lock:  # one at a time: each may take much memory
            if name in self._found and not replace:
                raise OptionError(f"There is an adapter {name!r} already.", "Unload it first.")
            if name not in self._found and len(self._found) >= most:
                raise OptionError(f"There are {most} adapters already.", "Unload one first.")
            adapter = read_adapter(path, self._model)
            self._found = {**self._found, name: adapter}
            return adapter

    def unload(self, name: str) -> None:
        """Forget a name. Errors: RequestError when there is none."""
        with self._lock:
            self.find(name)
            self._found = {known: own for known, own in self._found.items() if known != name}

    def find(self, wanted: str | Adapter | None) -> Adapter | None:
        """The adapter that a request names. Errors: RequestError."""
        if wanted is None or isinstance(wanted, Adapter):
            return wanted
        found = self._found.get(wanted) if isinstance(wanted, str) else None
        if found is None:
            known = ", ".join(sorted(self._found)[:20]) or "none is loaded"
            raise RequestError(
                f"There is no adapter {wanted!r:.100} ({known}).",
                "Load it with adapters.load.",
                param="adapter",
            )
        return found

    def __getitem__(self, name: str) -> Adapter:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
