"""`qwenkit pull` and `qwenkit list`: models on this machine."""

from __future__ import annotations

import sys

from qwenkit.cli.output import download_bars, hint, print_json, table
from qwenkit.io.hub import list_cached, resolve
from qwenkit.io.names import directory_bytes
from qwenkit.options import ListOptions, PullOptions
from qwenkit.utils import human_bytes


def pull(options: PullOptions) -> int:
    """Fetch a model, or the newer files of one; prints its folder."""
    with download_bars() as progress:
        path = resolve(options.model, source=options.source, progress=progress, refresh=True)
    size = directory_bytes(path)
    if options.as_json:
        print_json({"model": options.model, "path": str(path), "size_bytes": size})
        return 0
    print(path)
    print(f"{options.model} is complete: {human_bytes(size)}", file=sys.stderr)
    hint(f'qwenkit run {options.model} -p "…"')
    return 0


def show_list(options: ListOptions) -> int:
    """Every complete model on this machine; no network."""
    models = list_cached()
    if options.as_json:
        print_json(
            [
                {
                    "model": model.ref,
                    "source": model.source,
                    "revision": model.revision,
                    "size_bytes": model.size_bytes,
                    "path": str(model.path),
                }
                for model in models
            ]
        )
        return 0
    if not models:
        print("no model on this machine", file=sys.stderr)
    else:
        rows = [
            [model.ref, human_bytes(model.size_bytes), model.source, model.revision[:12]]
            for model in models
        ]
        table(["model", "size", "source", "revision"], rows, right=[1])
    hint("qwenkit family   (what could be pulled)")
    return 0
