"""What guides and READMEs show of clients runs, as it is shown, against a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted(ROOT.glob("docs/*/server.md"))
ADDRESS = "http://127.0.0.1:8000"


def run(page: Path, server: str) -> int:
    """Run the blocks of clients, one after the other; how many there are."""
    code = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)
    asks = [block for block in code if "qwenkit import" not in block]
    shared: dict[str, object] = {}
    for block in asks:
        exec(block.replace(ADDRESS, server), shared)
    return len(asks)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.parent.name)
def test_the_guide_runs(
    guide: Path,
    live: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(guide, live.url) == 4
    shown = capsys.readouterr().out
    assert "579" in shown and "sum-2" in shown and '"age"' in shown


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_client_of_the_readme_runs(
    name: str, live: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ROOT / name, live.url) == 1
    assert capsys.readouterr().out.strip()
