"""qwenkit beside llama.cpp, OpenVINO GenAI and transformers, in turn in one run, with ratios.

    python bench/peers.py [--size 0.5B] [--rounds 3]

All have the same random checkpoint of a published shape; llama.cpp's files come from its own tools,
and qwenkit opens the same Q8_0 and Q4_K_M. In every round each kind of measurement goes round all
engines before the next kind, so that what disturbs the machine disturbs all of them; ratios are
medians of the rounds' own ratios. A peer that is not there is named.

    decode       one sequence, after 128 tokens        llama-bench -n 64 -d 128
    decode 4/16  so many sequences, sum of tokens/s    llama-batched-bench -npp 128 -ntg 32
    prefill 512  one prompt                            llama-bench -p 512

OpenVINO runs its ContinuousBatchingPipeline on token ids; for its prefill the better of one prompt
of 512 tokens and four of 128 counts. qwenkit's figures hold the whole step, sampling included;
llama.cpp's tools leave sampling out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import Worker, checkpoint, median, run, save, say, table
from peers_setup import BINARIES, PYTHON, gguf, openvino_model, setup

from qwenkit.ops import cpu

KINDS = ("decode", "decode 4", "decode 16", "prefill 512")
Measure = Callable[[str], float]
GOALS = (
    ("decode", "qwenkit int4", "llama.cpp Q4_0", 1.1),
    ("decode", "qwenkit Q4_K_M", "llama.cpp Q4_K_M", 1.4),
    ("decode", "qwenkit Q8_0", "llama.cpp Q8_0", 1.15),
    ("prefill 512", "qwenkit int4", "llama.cpp Q4_0", 2.5),
    ("prefill 512", "qwenkit int4", "OpenVINO int4", 1.2),
    ("decode 16", "qwenkit int4", "llama.cpp Q4_0", 3.0),
    ("decode 16", "qwenkit int4", "OpenVINO int4", 1.4),
)
"""The project's aims: kind, of whom, against whom, the ratio wanted."""
BESIDE = {
    "qwenkit int4": ("llama.cpp Q4_0", "OpenVINO int4"),
    "qwenkit int8": ("llama.cpp Q8_0",),
    "qwenkit Q4_K_M": ("llama.cpp Q4_K_M",),
    "qwenkit Q8_0": ("llama.cpp Q8_0",),
    "qwenkit bf16": ("llama.cpp BF16", "transformers"),
}


def of_worker(worker: Worker, seconds: float) -> Measure:
    def measure(kind: str) -> float:
        what, _, count = kind.partition(" ")
        if what == "prefill":
            answer = worker.ask("prefill", tokens=int(count), seconds=seconds)
        else:
            answer = worker.ask("decode", sequences=int(count or 1), context=128, seconds=seconds)
        rate: float = answer["rate"]
        return rate

    return measure


def of_openvino(worker: Worker, seconds: float) -> Measure:
    measure = of_worker(worker, seconds)

    def better(kind: str) -> float:
        if kind != "prefill 512":
            return measure(kind)
        many = worker.ask("prefill_many", sequences=4, tokens=128, seconds=seconds)
        rate: float = many["rate"]
        return max(measure(kind), rate)

    return better


def of_llama(path: Path, threads: int) -> Measure:
    def measure(kind: str) -> float:
        what, _, count = kind.partition(" ")
        model = ["-m", str(path), "-t", str(threads)]
        if what == "decode" and count:
            words = [*model, "-c", "4096", "-b", "2048", "-ub", "512", "-npp", "128"]
            words += ["-ntg", "32", "-npl", count, "--output-format", "jsonl"]
            found = run([str(BINARIES / "llama-batched-bench"), *words]).stdout
            line = next(line for line in found.splitlines() if line.startswith("{"))
            rate: float = json.loads(line)["speed_tg"]
            return rate
        words = ["-p", count, "-n", "0"] if what == "prefill" else ["-p", "0", "-n", "64"]
        words += ["-r", "2", "-o", "json", "-d", "0" if what == "prefill" else "128"]
        found = run([str(BINARIES / "llama-bench"), *model, *words]).stdout
        return median(json.loads(found)[0]["samples_ts"])

    return measure


def engines(
    options: argparse.Namespace, absent: dict[str, str], stack: contextlib.ExitStack
) -> dict[str, Measure]:
    """Name → measurement, of all that are there; those with a process of their own are loaded."""
    size, threads = options.size, str(options.threads)
    path = str(checkpoint(size))
    found: dict[str, Measure] = {}

    def add(name: str, make: Callable[[Worker, float], Measure], *words: str, **more: Any) -> None:
        say(f"loading {name}")
        worker = stack.enter_context(
            contextlib.closing(Worker(*words, "--threads", threads, **more))
        )
        found[name] = make(worker, options.seconds)

    add("qwenkit int4", of_worker, "qwenkit", path, "--quantize", "int4")
    add("qwenkit int8", of_worker, "qwenkit", path, "--quantize", "int8")
    add("qwenkit bf16", of_worker, "qwenkit", path, "--dtype", "bfloat16")
    if "llama.cpp" not in absent:
        for kind in ("Q4_K_M", "Q8_0"):
            add(f"qwenkit {kind}", of_worker, "qwenkit", str(gguf(size, kind)))
        for kind in ("Q4_0", "Q4_K_M", "Q8_0", "BF16"):
            found[f"llama.cpp {kind}"] = of_llama(gguf(size, kind), options.threads)
    if "OpenVINO" not in absent:
        model = str(openvino_model(size))
        add("OpenVINO int4", of_openvino, "openvino", model, python=PYTHON)
    if "transformers" not in absent:
        add("transformers", of_worker, "transformers", path)
    return found


def measure(options: argparse.Namespace, absent: dict[str, str]) -> dict[str, Any]:
    """name → kind → a figure for each round."""
    with contextlib.ExitStack() as stack:
        found = engines(options, absent, stack)
        rates: dict[str, Any] = {name: {kind: [] for kind in KINDS} for name in found}
        for number in range(options.rounds):
            for kind in KINDS:
                say(f"round {number + 1} of {options.rounds}: {kind}")
                for name, ask in found.items():
                    if name == "transformers" and number and kind != "decode":
                        continue  # slow, and far behind: once is enough
                    rates[name][kind].append(ask(kind))
    return rates


def ratio(rates: dict[str, Any], kind: str, ours: str, theirs: str) -> float | None:
    """The median of the rounds' ratios; None where one of the two is absent."""
    if ours not in rates or theirs not in rates:
        return None
    pairs = zip(rates[ours][kind], rates[theirs][kind], strict=False)
    return median([own / other for own, other in pairs])


def tables(rates: dict[str, Any]) -> Iterable[str]:
    """Figures, ratios, and the aims with what was reached."""
    rows = [[name, *(f"{median(row[kind]):.1f}" for kind in KINDS)] for name, row in rates.items()]
    yield table(["tokens/s", *KINDS], rows)
    rows = []
    for ours, others in BESIDE.items():
        for theirs in others:
            found = [ratio(rates, kind, ours, theirs) for kind in KINDS]
            if None not in found:
                rows.append([f"{ours} : {theirs}", *(f"{value:.2f}" for value in found)])
    yield table(["ratio", *KINDS], rows)
    rows = []
    for kind, ours, theirs, wanted in GOALS:
        value = ratio(rates, kind, ours, theirs)
        verdict = "absent" if value is None else "reached" if value >= wanted else "missed"
        shown = "–" if value is None else f"{value:.2f}"
        rows.append([f"{kind}: {ours} : {theirs}", f"{wanted:.2f}", shown, verdict])
    yield table(["aim", "wanted", "measured", ""], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="0.5B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out, by name")
    options = parser.parse_args()
    absent = setup(options.size) | dict.fromkeys(options.without, "left out")
    rates = measure(options, absent)
    text = "\n\n".join(tables(rates))
    text += "".join(f"\n\nabsent: {name} ({reason})" for name, reason in absent.items())
    print(text)
    values = {"size": options.size, "threads": options.threads, "absent": absent, "rates": rates}
    kernels = cpu.instruction_set() or "PyTorch alone"  # machines of several kinds have sections
    save(f"Beside others, {options.size}, {kernels}", text, values)


if __name__ == "__main__":
    main()
