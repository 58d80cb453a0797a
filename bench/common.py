"""What the benchmarks share: the machine in words, measuring processes, tables, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenkit.io.hub import ASSETS
from qwenkit.model.load import load_model
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "bench"
"""Checkpoints with random weights, made once."""
RESULTS = ROOT / "bench" / "RESULTS.md"
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")


def machine() -> dict[str, Any]:
    """CPU model, cores, instruction sets, memory; "unknown" where the system does not tell."""
    info: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name", platform.processor() or "unknown"),
        "family": " ".join(info.get(key, "") for key in ("cpu family", "model")).strip(),
        "cores": os.cpu_count(),
        "instruction_sets": [flag for flag in _FLAGS if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def provenance() -> dict[str, Any]:
    """Machine, commit, command and time of this run."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run(
        [*git, "status", "--porcelain", "--", "qwenkit"], capture_output=True, text=True
    )
    command = ["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]
    return {
        "machine": machine(),
        "commit": commit.stdout.strip() + (" with changes" if dirty.stdout.strip() else ""),
        "command": shlex.join(command),
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, text: str, found: dict[str, Any]) -> None:
    """Put a section called `name` with `text` (Markdown), machine, commit and command into
    bench/RESULTS.md, in place of the one of that name; all figures go to build/bench/NAME.json.
    """
    where = provenance()
    BUILT.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps({**where, **found}, indent=1, ensure_ascii=False)
    (BUILT / f"{name.replace(' ', '-')}.json").write_text(numbers + "\n", encoding="utf-8")
    here = where["machine"]
    sets = ", ".join(here["instruction_sets"]) or "none of those looked for"
    origin = (
        f"{where['date']}, commit {where['commit']}, `{where['command']}`. {here['cpu']} (family "
        f"and model {here['family']}), {here['cores']} cores, instruction sets {sets}, "
        f"{here['memory_bytes'] / (1 << 30):.0f} GiB, Python {here['python']}."
    )
    title = (
        "# Results\n\nWritten by the scripts in `bench/`, each of which replaces its own section.\n"
    )
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else title
    sections = [part for part in old.split("\n## ")[1:] if not part.startswith(f"{name}\n")]
    sections = sorted([*sections, f"{name}\n\n{origin}\n\n{text.strip()}\n"])
    RESULTS.write_text("\n## ".join([title, *sections]), encoding="utf-8")


def free_memory() -> int:
    """Bytes that a new process may take, as the system guesses."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/meminfo has no MemAvailable")


def checkpoint(size: str) -> Path:
    """The folder of a checkpoint of that size with random weights, made if it is not there."""
    path = BUILT / size
    if not (path / "config.json").exists():
        say(f"making a {size} checkpoint with random weights")
        words = [sys.executable, "-m", "qwenkit", "dev", "random-checkpoint", size, str(path)]
        run([*words, "--tokenizer", str(_tokenizer())])
    return path


def load(name: str, dtype: str, quantize: str | None) -> Qwen:
    """An embedded model, or a random one of a published size, as an `LLM` loads it."""
    path = ASSETS / name
    model = load_model(
        path if path.is_dir() else checkpoint(name), dtype, quantize=quantize, prepack=True
    )
    prepare(model)
    return model


def _tokenizer() -> Path:
    path = BUILT / "tokenizer"
    if not (path / "tokenizer.json").exists():
        run([sys.executable, str(ROOT / "scripts" / "published_tokenizer.py"), str(path)])
    return path


def run(command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """A command that must succeed; its output is shown only if it does not."""
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(
            f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Worker:
    """A process that keeps a model loaded and measures when told to: `bench/worker.py`."""

    def __init__(self, *words: str, python: str | Path = sys.executable) -> None:
        command = [str(python), str(ROOT / "bench" / "worker.py"), *words]
        self._name = shlex.join(words)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.ready = self._answer()

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """The answer to one request, as `worker.py` describes them."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, **values}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print all kinds of things
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"the worker ({self._name}) ended with code {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left, aligned for reading as it stands."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
