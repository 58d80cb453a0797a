"""Short forms of `bench/stress_server.py`, with patience: machines that test are busy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["streams", "disconnects", "sigterms", "loris", "grammars"])
def test_a_server_keeps_its_promises(part: str) -> None:
    words = [sys.executable, "stress_server.py", part, "--scale", "0.03", "--patience", "20"]
    ran = subprocess.run(words, cwd=BENCH, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert ran.stdout.startswith(f"{part}: ")
