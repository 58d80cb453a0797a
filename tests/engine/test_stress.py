"""The short form of `make stress`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "stress_engine.py"


def test_clients_that_leave_pauses_and_poison() -> None:
    sizes = ["--disconnects", "40", "--preemptions", "20", "--pairs", "150"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\n") == 3, run.stdout
