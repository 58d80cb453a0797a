"""How much memory a model takes, and how much there is. Arithmetic; no torch, no model files.

Weights come from the shapes. int8 and int4 mean the published GPTQ and AWQ layout: the decoder's
matrices in groups of 128 with a 16-bit scale and a zero point each, embedding and head in 16 bits.
The cache keeps keys and values in 16 bits (32 for fp32). Working memory is a bound on what one
forward of `CHUNK` tokens holds at once, plus the program itself. Not covered: training, the vision
tower's activations.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qwenkit.config import ModelConfig
from qwenkit.errors import OptionError

GROUP = 128
CHUNK = 512
"""Tokens of one forward: the engine's default."""
PROGRAM_BYTES = 400 << 20
"""Resident size of Python with torch, measured on Linux x86-64."""
BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8 + 24 / GROUP, "int4": 4 + 20 / GROUP}
STEP = 256
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Estimate:
    """Bytes that one dtype needs for `concurrency` sequences of `context` tokens."""

    dtype: str
    weights: int
    cache: int
    working: int
    cache_per_token: int
    """For all sequences together."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working

    def context_within(self, memory: int) -> int:
        """Longest context, a multiple of 256 tokens, that fits `memory` bytes; 0 if none does."""
        free = memory - self.weights - self.working
        return max(free // self.cache_per_token // STEP * STEP, 0)


def estimate(config: ModelConfig, dtype: str, context: int, concurrency: int = 1) -> Estimate:
    """Memory of a model in `dtype` (a key of `BITS`)."""
    wide = 4 if dtype == "fp32" else 2
    if dtype in ("fp32", "bf16"):
        weights = config.num_parameters * wide
    else:
        body = config.num_non_embedding_parameters
        weights = int(body * BITS[dtype] / 8) + (config.num_parameters - body) * wide
    per_token = config.kv_bytes_per_token(wide) * concurrency
    working = PROGRAM_BYTES + _activations(config, wide, context, concurrency)
    return Estimate(dtype, weights, per_token * context, working, per_token)


def _activations(config: ModelConfig, wide: int, context: int, concurrency: int) -> int:
    """What a block holds at its widest, one layer's gathered keys and values, and the logits."""
    tokens = min(CHUNK, context * concurrency)
    width = max(config.intermediate_size, config.shared_expert_intermediate_size)
    block = tokens * (6 * config.hidden_size + 3 * width) * wide
    gathered = 2 * context * config.kv_bytes_per_token(wide) // config.num_hidden_layers
    logits = 3 * 4 * min(concurrency, tokens) * config.vocab_size
    return block + gathered + logits


def parse_size(text: str) -> int:
    """'24GiB', '24g', '1.5 TB', '123456' → bytes. Errors: OptionError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    unit = match.group(2) if match else "?"
    if match is None or unit not in {**_UNITS, **_BINARY}:
        raise OptionError(f"{text!r} is not a size of memory.", "Write it like 24GiB or 16GB.")
    return int(float(match.group(1)) * {**_UNITS, **_BINARY}[unit])


def available_memory() -> int:
    """Bytes that a new program may take now: MemAvailable, or less where a container limits it."""
    free = _meminfo().get("MemAvailable", 0)
    limit, used = _cgroup()
    return free if limit is None else max(min(free, limit - used), 0)


def total_memory() -> int:
    """Bytes of main memory, or of the container's limit."""
    total = _meminfo().get("MemTotal", 0)
    limit, _ = _cgroup()
    return total if limit is None else min(total, limit)


def gpus() -> list[tuple[str, int, int]]:
    """(name, free bytes, total bytes) of each NVIDIA GPU, from its driver's tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            query, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that does not answer is no GPU for us; doctor tells
    found = []
    for line in answer.splitlines():
        name, free, total = (part.strip() for part in line.rsplit(",", 2))
        if free.isdigit() and total.isdigit():
            found.append((name, int(free) << 20, int(total) << 20))
    return found


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; elsewhere all memory counts as available."""
    lines = _read("/proc/meminfo").splitlines()
    if not lines:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"MemTotal": total, "MemAvailable": total}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key: int(rest.split()[0]) * 1024 for key, rest in pairs if rest.split()}


def _cgroup() -> tuple[int | None, int]:
    """The container's memory limit and use (cgroup v2, then v1); (None, 0) without a limit.

    Cached file pages that the kernel would drop first do not count as used.
    """
    v2, v1 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/memory"
    for limit, used, stat in (
        (f"{v2}.max", f"{v2}.current", f"{v2}.stat"),
        (f"{v1}.limit_in_bytes", f"{v1}.usage_in_bytes", f"{v1}.stat"),
    ):
        most, now = _read(limit).strip(), _read(used).strip()
        if not most.isdigit() or int(most) >= 1 << 60:
            continue
        fields = dict(line.split() for line in _read(stat).splitlines() if len(line.split()) == 2)
        cached = int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)
        return int(most), max(int(now) - cached, 0) if now.isdigit() else 0
    return None, 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
