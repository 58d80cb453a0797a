"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published files and data sets; tests that need it are skipped where it is
    absent.
    """
    default = Path(__file__).resolve().parents[1].parent / "shared"
    path = Path(os.environ.get("QWENKIT_SHARED", default))
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data at {path} (set QWENKIT_SHARED)")
    return path
