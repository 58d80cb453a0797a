"""The arithmetic of memory, held against published sizes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from qwenkit.cli import memory
from qwenkit.cli.memory import estimate, parse_size
from qwenkit.config import FAMILY
from qwenkit.errors import OptionError

GB = 10**9


@pytest.mark.parametrize(
    ("name", "dtype", "published"),
    [
        ("Qwen2.5-0.5B-Instruct", "bf16", 0.988),
        ("Qwen2.5-7B-Instruct", "bf16", 15.23),
        ("Qwen2.5-7B-Instruct", "int4", 5.58),
        ("Qwen2.5-72B-Instruct", "bf16", 145.4),
    ],
)
def test_weights_are_as_large_as_the_published_files(
    name: str, dtype: str, published: float
) -> None:
    """In 10⁹ bytes; bf16 is two bytes a parameter, int4 the size of the GPTQ-Int4 repository."""
    weights = estimate(FAMILY[name].config, dtype, 1).weights
    assert weights == pytest.approx(published * GB, rel=0.01)


def test_the_cache_grows_with_context_and_sequences() -> None:
    config = FAMILY["Qwen2.5-7B-Instruct"].config
    one = estimate(config, "bf16", 1000)
    assert one.cache == 1000 * 57_344
    assert estimate(config, "bf16", 1000, 3).cache == 3 * one.cache
    assert estimate(config, "fp32", 1000).cache == 2 * one.cache
    assert estimate(config, "int4", 1000).cache == one.cache
    assert one.total == one.weights + one.cache + one.working


@pytest.mark.parametrize("dtype", memory.BITS)
def test_the_context_that_fits_fits(dtype: str) -> None:
    config = FAMILY["Qwen2.5-7B-Instruct"].config
    for room in (0, 1 << 30, 9 << 30, 18 << 30, 40 << 30):
        row = estimate(config, dtype, 32768, 2)
        most = row.context_within(room)
        assert most % memory.STEP == 0
        if most:
            assert estimate(config, dtype, min(most, 32768), 2).total <= room
        if most < 32768:
            assert estimate(config, dtype, 32768, 2).total > room


def test_experts_count_all() -> None:
    row = estimate(FAMILY["Qwen2-57B-A14B"].config, "bf16", 1)
    assert row.weights == 2 * 57_408_658_944


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 << 30), ("24gb", 24 * GB), (" 1.5 TB ", 1500 * GB), ("512", 512), ("8g", 8 * GB)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1i", "1e9", "nan", "GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="Write it like 24GiB"):
        parse_size(text)


def test_a_container_limits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal:       8000 kB\nMemAvailable:   6000 kB\nHugePages_Total:   0\n",
        "/sys/fs/cgroup/memory.max": "4096000\n",
        "/sys/fs/cgroup/memory.current": "1024000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 24000\n",
    }
    monkeypatch.setattr(memory, "_read", lambda path: files.get(path, ""))
    assert memory.available_memory() == 4096000 - (1024000 - 24000)
    assert memory.total_memory() == 4096000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.available_memory() == 6000 * 1024
    assert memory.total_memory() == 8000 * 1024


def test_gpus_are_read_from_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 1000, 2000'\necho 'Odd, [N/A], [N/A]'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert memory.gpus() == [("NVIDIA H200", 1000 << 20, 2000 << 20)]
    tool.write_text("#!/bin/sh\necho 'NVML: driver mismatch' >&2\nexit 18\n")
    assert memory.gpus() == []
