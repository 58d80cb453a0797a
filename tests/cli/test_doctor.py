"""`qwenkit doctor`: every line names what is there, or what is missing and its remedy."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenkit.cli import doctor as checks
from qwenkit.errors import HubError


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "resolve", lambda name, **_: Path("/assets") / name)


@pytest.mark.usefixtures("healthy")
def test_a_healthy_machine(cli: Callable[..., Any]) -> None:
    ran = cli("doctor")
    assert ran.code == 0
    for name in ("qwenkit", "python", "torch", "packages", "cpu", "memory", "tiny", "hf cache"):
        assert f" {name} " in ran.out
    assert "switched off by HF_HUB_OFFLINE" in ran.out
    report = json.loads(cli("doctor", "--json").out)
    assert report["ok"] is True
    assert {check["state"] for check in report["checks"]} <= {"ok", "note"}


def test_a_missing_model_is_named_with_its_remedy(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, **_: Any) -> Path:
        raise HubError(f"{name} is not here.", "Reinstall it.")

    monkeypatch.setattr(checks, "resolve", fails)
    ran = cli("doctor", "--no-network")
    assert ran.code == 1 and "2 missing: tiny, tiny-instruct" in ran.out
    assert "tiny is not here." in ran.out and "Reinstall it." in ran.out


@pytest.mark.usefixtures("healthy")
def test_misspelt_variables_are_found(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWENKIT_TEMPRATURE", "1")
    monkeypatch.setenv("QWENKIT_TOP_K", "1")
    ran = cli("doctor")
    assert "QWENKIT_TEMPRATURE is set, but nothing reads it" in ran.out
    assert "Did you mean QWENKIT_TEMPERATURE?" in ran.out and "QWENKIT_TOP_K=1" in ran.out


def test_the_network_is_only_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert checks._reach("hub", f"http://127.0.0.1:{port}").state == "ok"
    gone = checks._reach("hub", f"http://127.0.0.1:{port}")
    assert gone.state == "note" and gone.remedy
    assert checks._reach("hub", "http://[bad").state == "note"
    monkeypatch.setenv("https_proxy", "http://proxy")
    assert "through the proxy of https_proxy" in checks._reach("hub", "https://x").text


def test_missing_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> str:
        raise checks.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.importlib.metadata, "version", absent)
    (finding,) = checks._packages()
    assert finding.state == "missing" and (finding.remedy or "").startswith("pip install ")
    monkeypatch.setattr("qwenkit.ops.cpu.available", lambda: False)
    monkeypatch.setattr("qwenkit.ops.cpu.unavailable_reason", lambda: "no module")
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = checks._extension()
    assert finding.state == "note" and "no module" in finding.text
    assert finding.remedy == "Install g++ and reinstall."
    monkeypatch.setattr(checks, "gpus", lambda: [("NVIDIA H200", 1 << 30, 2 << 30)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = checks._gpu()
    assert finding.state == "note" and finding.remedy
    monkeypatch.setattr(checks, "available_memory", lambda: 1 << 20)
    assert checks._memory()[0].state == "note"
    monkeypatch.setattr(checks, "TORCH", ((99, 0), (99, 1)))
    assert "not tested" in checks._torch()[0].text
