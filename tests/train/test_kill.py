from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_killed_runs_end_bit_identical_and_saves_are_never_torn() -> None:
    """The short form of `bench/kill_resume.py --kills 20 --sweep`."""
    command = [sys.executable, str(ROOT / "bench" / "kill_resume.py")]
    command += ["--kills", "5", "--steps", "12", "--sweep", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 killed runs ended bit-identical" in done.stdout
    assert "sweep: killed before each of the" in done.stdout
