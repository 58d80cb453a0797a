"""One table of qwenkit's own speed and memory: published shapes with random weights, by format.

    python bench/speed.py [--sizes 0.5B 1.5B 7B] [--formats int4 int8 bf16] [--rounds 3]

Each size and format is a process of its own that loads the model once; within it decoding (1, 4 and
16 sequences) and a prompt of 512 tokens take turns, and a figure is the median over the rounds. `of
bandwidth` is the bytes of all weights that one decoded token needs, times tokens/s, over what as
many threads read of a large array in the same round. A model that would not fit the free memory is
named as not run. `peak` is VmHWM, the resident set at its largest since the process began: mapped
files and the shared libraries of PyTorch (about 90 MiB) count. `over` is the peak without weights
and cache.
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from typing import Any

import torch
from common import Worker, checkpoint, free_memory, median, save, say, table

from qwenkit.cli.dev import published_shape
from qwenkit.eval.speed import read_rate

FORMATS = {
    "int4": ["--quantize", "int4"],
    "int8": ["--quantize", "int8"],
    "bf16": ["--dtype", "bfloat16"],
}
BITS = {"int4": 4.5, "int8": 8.25, "bf16": 16.0}
REQUESTS: dict[str, dict[str, Any]] = {
    "decode": {"what": "decode", "sequences": 1, "context": 128},
    "decode 4": {"what": "decode", "sequences": 4, "context": 128},
    "decode 16": {"what": "decode", "sequences": 16, "context": 128},
    "prefill 512": {"what": "prefill", "tokens": 512},
}


def measure(size: str, format: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model, or the reason why there are none."""
    config = published_shape(size)
    body = config.num_non_embedding_parameters
    needed = body * BITS[format] / 8 + (config.num_parameters - body) * 2 + (1 << 30)
    if needed > free_memory():
        reason = f"needs {needed / 1e9:.1f} GB, {free_memory() / 1e9:.1f} GB are free"
        return {"size": size, "format": format, "not_run": reason}
    path = checkpoint(size)
    say(f"{size} {format}: loading")
    words = ["qwenkit", str(path), *FORMATS[format], "--threads", str(options.threads)]
    found: dict[str, list[float]] = {name: [] for name in (*REQUESTS, "read_rate")}
    with closing(Worker(*words)) as worker:
        for number in range(options.rounds):
            say(f"{size} {format}: round {number + 1} of {options.rounds}")
            found["read_rate"].append(read_rate())
            for name, request in REQUESTS.items():
                answer = worker.ask(**request, seconds=options.seconds)
                found[name].append(answer["rate"])
        after = worker.ask("about")
    middle = {name: median(values) for name, values in found.items()}
    return {
        "size": size,
        "format": format,
        "loaded_in": worker.ready["loaded_in"],
        "model_bytes": after["model_bytes"],
        "weight_bytes": after["weight_bytes"],
        "cache_bytes": after["cache_bytes"],
        "load_peak_bytes": worker.ready["peak_bytes"],
        "private_bytes": after["private_bytes"],
        "peak_bytes": after["peak_bytes"],
        "bandwidth_share": after["weight_bytes"] * middle["decode"] / middle["read_rate"],
        "rounds": found,
        **middle,
    }


def shown(row: dict[str, Any]) -> list[str]:
    if "not_run" in row:
        return [f"{row['size']} {row['format']}", f"not run: {row['not_run']}", *[""] * 9]
    mib = {key: row[key] / (1 << 20) for key in row if key.endswith("_bytes")}
    over = mib["peak_bytes"] - mib["model_bytes"] - mib["cache_bytes"]
    return [
        f"{row['size']} {row['format']}",
        *(f"{row[name]:.1f}" for name in REQUESTS),
        f"{row['bandwidth_share']:.2f}",
        f"{row['read_rate'] / 1e9:.1f}",
        f"{row['loaded_in']:.0f}",
        *(f"{mib[key]:.0f}" for key in ("model_bytes", "peak_bytes")),
        f"{over:.0f}",
    ]


COLUMNS = [
    "tokens/s", *REQUESTS, "of bandwidth", "GB/s", "load s", "weights MiB", "peak MiB", "over MiB",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["0.5B", "1.5B", "7B"])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="least time of a measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(size, format, options) for size in options.sizes for format in options.formats]
    text = table(COLUMNS, [shown(row) for row in rows])
    print(text)
    explained = (__doc__ or "").split("\n\n", 2)[2].replace("\n", " ")
    save("Speed and memory", f"{text}\n\n{explained}", {"threads": options.threads, "rows": rows})


if __name__ == "__main__":
    main()
