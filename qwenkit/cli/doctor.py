"""`qwenkit doctor`: what is there, what is missing, and what to do about it.

Every check gives one line. "missing" needs mending and makes the exit code 1; "note" is a
limitation that one can live with. The network is only looked at: a machine without one is a good
machine.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenkit import __version__
from qwenkit.cli.memory import available_memory, gpus, total_memory
from qwenkit.cli.output import console, hint, print_json
from qwenkit.errors import QwenkitError
from qwenkit.io import huggingface, modelscope
from qwenkit.io.hub import EMBEDDED, resolve
from qwenkit.options import VERBS, DoctorOptions, env_name
from qwenkit.utils import human_bytes

TORCH = ((2, 11), (2, 14))
OTHER_VARIABLES = ("OPS", "ISA", "HUB", "OFFLINE", "TRACEBACK", "SHARED")
_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")
_TIMEOUT = 3.0
_LOW_DISK = 5 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state`: ok, note or missing."""

    name: str
    state: str
    text: str
    remedy: str | None = None


def doctor(options: DoctorOptions) -> int:
    """Run all checks; 1 if something is missing."""
    checks: list[Callable[[], list[Finding]]] = [
        _python, _torch, _packages, _cpu, _extension, _gpu, _memory, _embedded, _caches, _variables,
    ]  # fmt: skip
    if options.network:
        checks.append(_network)
    findings: list[Finding] = []
    for check in checks:
        fresh = check()
        findings += fresh
        if not options.as_json:
            for finding in fresh:
                _print(finding)
    missing = [finding for finding in findings if finding.state == "missing"]
    if options.as_json:
        print_json({"ok": not missing, "checks": [vars(finding) for finding in findings]})
    elif missing:
        print(f"{len(missing)} missing: {', '.join(finding.name for finding in missing)}")
    else:
        hint('qwenkit run -p "What can you do?"')
    return 1 if missing else 0


def _print(finding: Finding) -> None:
    style = {"ok": "green", "note": "yellow", "missing": "red"}[finding.state]
    out = console()
    out.print(f"[{style}]{finding.state:<8}[/]", end="")
    out.print(f"{finding.name:<15}{finding.text}", markup=False, soft_wrap=True)
    if finding.remedy:
        out.print(f"{'':<23}{finding.remedy}", markup=False, soft_wrap=True)


def _python() -> list[Finding]:
    return [
        Finding("qwenkit", "ok", f"{__version__} in {Path(__file__).parents[1]}"),
        Finding("python", "ok", f"{platform.python_version()} at {sys.executable}"),
    ]


def _torch() -> list[Finding]:
    install = "pip install 'torch>=2.11,<2.14'"
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("torch", "missing", " ".join(str(error).split()), install)]
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    text = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if not TORCH[0] <= version < TORCH[1]:
        return [Finding("torch", "note", f"{text}: not tested with this version", install)]
    return [Finding("torch", "ok", text)]


def _packages() -> list[Finding]:
    names = ("tokenizers", "jinja2", "pydantic", "PyYAML", "rich", "prompt_toolkit", "tensorboard")
    absent, found = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return [
            Finding("packages", "missing", ", ".join(absent), f"pip install {' '.join(absent)}")
        ]
    return [Finding("packages", "ok", ", ".join(found))]


def _cpu() -> list[Finding]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [Finding("cpu", "ok", f"{platform.machine()}, {os.cpu_count()} cores")]
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    flags = (known.get("flags") or known.get("Features") or "").split()
    features = " ".join(name for name in _FEATURES if name in flags) or "no vector extensions"
    model = known.get("model name") or platform.machine()
    return [Finding("cpu", "ok", f"{model}, {os.cpu_count()} cores, {features}")]


def _extension() -> list[Finding]:
    try:
        from qwenkit.ops import cpu
    except (ImportError, OSError):
        return []  # without torch; that line has been said
    try:
        if cpu.available():
            return [Finding("c++ part", "ok", f"built, uses {cpu.instruction_set()}")]
    except QwenkitError as error:
        return [Finding("c++ part", "missing", error.message, error.remedy)]
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    remedy = f"Reinstall qwenkit; {compiler} is here." if compiler else "Install g++ and reinstall."
    reason = cpu.unavailable_reason() or "unknown reason"
    return [Finding("c++ part", "note", f"not built, slower but complete ({reason})", remedy)]


def _gpu() -> list[Finding]:
    cards = [
        f"{name}, {human_bytes(free)} free of {human_bytes(total)}" for name, free, total in gpus()
    ]
    try:
        import torch

        usable = torch.cuda.is_available()
        built = torch.version.cuda is not None
    except (ImportError, OSError):
        return []
    if usable:
        return [Finding("gpu", "ok", text) for text in cards or ["seen by torch"]]
    if cards and not built:
        why, remedy = "this torch is built for the CPU", "Install a CUDA build of torch."
        return [Finding("gpu", "note", f"{cards[0]}, but {why}", remedy)]
    if cards:
        why, remedy = "torch cannot use it", "Check the driver and CUDA_VISIBLE_DEVICES."
        return [Finding("gpu", "note", f"{cards[0]}, but {why}", remedy)]
    return [Finding("gpu", "ok", "none; the CPU is used")]


def _memory() -> list[Finding]:
    free = available_memory()
    text = f"{human_bytes(free)} free of {human_bytes(total_memory())}"
    if free < 1 << 30:
        return [Finding("memory", "note", text, "Close programs; tiny-instruct needs 1 GiB.")]
    return [Finding("memory", "ok", text)]


def _embedded() -> list[Finding]:
    found = []
    for name in EMBEDDED:
        try:
            found.append(Finding(name, "ok", f"at {resolve(name, offline=True)}"))
        except QwenkitError as error:
            found.append(
                Finding(name, "missing", error.message, error.remedy or "Reinstall qwenkit.")
            )
    return found


def _caches() -> list[Finding]:
    found = []
    for title, root in (
        ("hf cache", huggingface.cache_root()),
        ("ms cache", modelscope.cache_root()),
    ):
        place = root
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            found.append(Finding(title, "note", f"{root}: {error.strerror}", "Check the path."))
            continue
        text = f"{root}, {human_bytes(free)} of disk free"
        if not os.access(place, os.W_OK):
            problem = f"{root} cannot be written to"
            found.append(Finding(title, "note", problem, "Check its permissions."))
        elif free < _LOW_DISK:
            found.append(
                Finding(title, "note", text, "Free some space before pulling larger models.")
            )
        else:
            found.append(Finding(title, "ok", text))
    return found


def _variables() -> list[Finding]:
    """Variables that start with QWENKIT_: what is set, and what nothing reads."""
    known = {env_name(name) for name in OTHER_VARIABLES}
    known |= {env_name(key) for cls in VERBS.values() for key in cls.names()}
    found = []
    for name in sorted(os.environ):
        if not name.startswith(env_name("")):
            continue
        if name in known:
            found.append(Finding("environment", "ok", f"{name}={os.environ[name]}"))
            continue
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Unset it."
        found.append(Finding("environment", "note", f"{name} is set, but nothing reads it", advice))
    return found


def _network() -> list[Finding]:
    for name in ("HF_HUB_OFFLINE", "QWENKIT_OFFLINE"):
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            return [Finding("network", "ok", f"switched off by {name}")]
    return [
        _reach("hugging face", huggingface.endpoint()),
        _reach("modelscope", modelscope.endpoint()),
    ]


def _reach(title: str, url: str) -> Finding:
    """Open one connection, through no proxy; with a proxy configured, say that instead."""
    names = ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    proxies = [name for name in names if os.environ.get(name)]
    if proxies:
        return Finding(title, "ok", f"{url}, through the proxy of {proxies[0]} (not tried)")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_TIMEOUT):
            return Finding(title, "ok", f"{url} answers")
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        remedy = "Only pulling needs it; models on this machine run all the same."
        return Finding(title, "note", f"{url} cannot be reached ({why})", remedy)
