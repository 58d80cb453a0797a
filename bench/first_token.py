"""How long until something happens: `qwenkit --help`, and the first token of `qwenkit run`.

    python bench/first_token.py [--runs 7] [--model tiny-instruct] [--json]

Every number is a whole new process, started as a shell would start it, with the files in the page
cache (one run before the measured ones). `import torch` is measured apart, since most of the first
token's time is spent there. The first token is the first byte on standard output.
Not covered: a cold disk, the speed after the first token.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "What is 123 + 456?"


def seconds(command: list[str], *, first_byte: bool) -> float:
    """Until the process ends, or until its first byte on standard output."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        at_first = time.perf_counter() - start
        process.stdout.read()
        problem = process.stderr.read()
        code = process.wait()
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{problem.decode(errors='replace')}")
    return at_first if first_byte else time.perf_counter() - start


def measure(command: list[str], runs: int, *, first_byte: bool = False) -> dict[str, float]:
    """Minimum, median and maximum in seconds, after one run that does not count."""
    seconds(command, first_byte=first_byte)
    times = [seconds(command, first_byte=first_byte) for _ in range(runs)]
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--model", default="tiny-instruct")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    qwenkit = str(Path(sys.executable).with_name("qwenkit"))
    answer = [qwenkit, "run", options.model, "-p", PROMPT, "--max-tokens", "32"]
    results = {
        "python": measure([sys.executable, "-c", ""], options.runs),
        "qwenkit --help": measure([qwenkit, "--help"], options.runs),
        "import torch": measure([sys.executable, "-c", "import torch"], options.runs),
        "qwenkit run, first token": measure(answer, options.runs, first_byte=True),
        "qwenkit run, whole answer": measure(answer, options.runs),
    }
    if options.json:
        print(json.dumps({"runs": options.runs, "seconds": results}, indent=2))
        return
    print(
        f"{platform.platform()}, Python {platform.python_version()}, {options.runs} runs, seconds"
    )
    print(f"{'':<28}{'min':>8}{'median':>8}{'max':>8}")
    for name, row in results.items():
        print(f"{name:<28}{row['min']:>8.2f}{row['median']:>8.2f}{row['max']:>8.2f}")


if __name__ == "__main__":
    main()
