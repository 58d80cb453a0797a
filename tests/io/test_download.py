"""Fetching one file: locks, links and a really full disk. The faults of a connection are in
test_huggingface.py.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qwenkit.errors import HubError
from qwenkit.io.download import check_space, fetch, locked, verified
from qwenkit.io.names import RemoteFile

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def file(hub: Any) -> RemoteFile:
    hub.repos["a/b"] = {"x.safetensors": CONTENT, "empty.json": b""}
    url = f"{hub.url}/a/b/resolve/main/x.safetensors"
    return RemoteFile("x.safetensors", url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_fetch_and_verify(file: RemoteFile, tmp_path: Path) -> None:
    part = tmp_path / "deep" / "part"
    assert not verified(file, part)
    fetch(file, part, {})
    assert part.read_bytes() == CONTENT and verified(file, part)
    part.write_bytes(CONTENT[:-1] + b"x")
    assert not verified(file, part)


def test_a_complete_part_is_verified_without_a_request(
    hub: Any, file: RemoteFile, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    part.write_bytes(CONTENT)
    fetch(file, part, {})
    assert hub.requests == []


def test_an_empty_file(hub: Any, tmp_path: Path) -> None:
    url = f"{hub.url}/a/b/resolve/main/empty.json"
    fetch(RemoteFile("empty.json", url, 0, hashlib.sha256().hexdigest()), tmp_path / "part", {})
    assert (tmp_path / "part").read_bytes() == b"" and hub.requests == []


def test_git_blob_ids_are_verified(hub: Any, file: RemoteFile, tmp_path: Path) -> None:
    done = subprocess.run(
        ["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True
    )
    oid = done.stdout.decode().strip()
    fetch(RemoteFile(file.path, file.url, file.size, None, oid), tmp_path / "part", {})
    with pytest.raises(HubError, match="wrong SHA digest"):
        fetch(RemoteFile(file.path, file.url, file.size, None, "0" * 40), tmp_path / "other", {})
    assert not (tmp_path / "other").exists()


def test_a_part_that_is_a_link_is_not_followed(file: RemoteFile, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "part").symlink_to(victim)
    with pytest.raises(HubError):
        fetch(file, tmp_path / "part", {})
    assert victim.read_text() == "precious"


def test_two_processes_take_turns(tmp_path: Path) -> None:
    lock, order = tmp_path / "locks" / "x.lock", []

    def other() -> None:
        with locked(lock):
            order.append("other")

    with locked(lock):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.25)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_two_downloads_at_once_fetch_a_file_once(hub: Any, model_files: dict[str, bytes]) -> None:
    hub.repos["a/b"] = model_files
    hub.faults["model.safetensors"] = [("slow", 0.1)]
    code = "import sys; from qwenkit.io.hub import resolve; print(resolve('a/b', refresh=True))"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and results[0] == results[1]
    assert len(hub.downloads("model.safetensors")) == 1


def test_a_part_that_another_process_puts_in_place_meanwhile(
    file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)  # as it was a moment ago
    check_space(tmp_path, [(file, tmp_path / "x.incomplete")], "a/b")


def test_K173_a_really_full_disk(file: RemoteFile, tmp_path: Path) -> None:
    """On a file system of 128 KiB, where the process may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip(
            "cannot mount a small file system here; EFBIG and ENOSPC are simulated elsewhere"
        )
    try:
        with pytest.raises(HubError, match="disk is full"):
            fetch(file, place / "part", {})
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
