"""A local server that speaks the protocols of Hugging Face and ModelScope, with faults on order."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.io import download, huggingface, modelscope
from qwenkit.io.http import Policy
from qwenkit.io.safetensors import save_file

ENVIRONMENT = (
    "HF_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE XDG_CACHE_HOME HF_ENDPOINT HF_TOKEN HF_TOKEN_PATH "
    "HUGGING_FACE_HUB_TOKEN HF_HUB_OFFLINE TRANSFORMERS_OFFLINE QWENKIT_OFFLINE QWENKIT_HUB "
    "MODELSCOPE_CACHE MODELSCOPE_ENDPOINT MODELSCOPE_DOMAIN MODELSCOPE_API_TOKEN "
    "http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY"
).split()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class FakeHub:
    """Repositories by name, their files by path. `faults[path]` are used up, one per request for
    that file.

    A fault is ("cut", n): close after n bytes; ("status", code, headers); ("corrupt",): other bytes
    of the same length; ("slow", seconds): wait between small pieces; ("norange",): ignore Range;
    ("long", n): announce n bytes more; ("range", n): answer with a range that is off by n;
    ("stall", seconds): nothing for so long.
    """

    page_size = 3

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.listing: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: (
            entries
        )
        self.cdn = ""
        self.link_host = ""
        self.gated = False
        self.url = ""

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.repos[repo].items()):
            digest.update(f"{path}\0".encode() + content)
        return digest.hexdigest()

    def downloads(self, path: str) -> list[str | None]:
        """The Range headers of the requests for one file."""
        quoted = (f"/{path}", f"FilePath={path}")
        return [h.get("range") for m, p, h in self.requests if m == "GET" and p.endswith(quoted)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests.append(
            (self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        )
        url = urllib.parse.urlsplit(self.path)
        path, query = url.path, dict(urllib.parse.parse_qsl(url.query))
        fault = hub.faults["*"].pop(0) if hub.faults["*"] else None
        if fault is not None and fault[0] == "status":
            self.reply(fault[1], b"", fault[2])
        elif match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path):
            self.modelscope(match[1], bool(match[2]), query)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self.huggingface(match[1], match[2], query)
        elif match := re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[2], urllib.parse.unquote(match[4]), bool(match[1]))
        else:
            self.reply(404, b"no such page")

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def modelscope(self, repo: str, listing: bool, query: dict[str, str]) -> None:
        hub = self.hub
        files = hub.repos.get(repo)
        if files is None or query.get("Revision") not in ("master", "v1"):
            body = json.dumps(
                {"Code": 10010205001, "Message": "record not found", "Success": False}
            )
            self.reply(404, body.encode())
        elif listing:
            entries = [
                {
                    "Path": p,
                    "Name": p,
                    "Type": "blob",
                    "Size": len(c),
                    "Sha256": hashlib.sha256(c).hexdigest(),
                }
                for p, c in sorted(files.items())
            ]
            entries.append(
                {"Path": "original", "Name": "original", "Type": "tree", "Size": 0, "Sha256": ""}
            )
            data = {"Code": 200, "Data": {"Files": hub.listing(entries)}, "Success": True}
            self.reply(200, json.dumps(data).encode())
        else:
            self.content(query["FilePath"], files[query["FilePath"]])

    def huggingface(self, repo: str, what: str, query: dict[str, str]) -> None:
        hub = self.hub
        files = hub.repos.get(repo)
        if files is None:
            self.reply(
                401, b'{"error":"Invalid username or password."}', {"X-Error-Code": "RepoNotFound"}
            )
            return
        commit, revision = (
            hub.commit(repo),
            urllib.parse.unquote(self.path.split("?")[0].split("/")[6]),
        )
        if revision not in ("main", "v1", commit):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what == "revision":
            siblings = [{"rfilename": p} for p in files]
            self.reply(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
        else:
            entries = []
            for p, c in sorted(files.items()):
                entry = {"type": "file", "path": p, "size": len(c), "oid": git_sha1(c)}
                if p.endswith((".safetensors", ".bin")):
                    digest = hashlib.sha256(c).hexdigest()
                    entry |= {
                        "oid": "0" * 40,
                        "lfs": {"oid": digest, "size": len(c), "pointerSize": 134},
                    }
                entries.append(entry)
            entries = hub.listing(entries)
            start = int(query.get("cursor", 0))
            headers = {}
            if start + hub.page_size < len(entries):
                following = (
                    f"{self.path.split('?')[0]}?recursive=true&cursor={start + hub.page_size}"
                )
                headers["Link"] = f'<{hub.link_host}{following}>; rel="next"'
            self.reply(200, json.dumps(entries[start : start + hub.page_size]).encode(), headers)

    def resolve(self, repo: str, path: str, on_cdn: bool) -> None:
        hub = self.hub
        content = hub.repos[repo][path]
        large = path.endswith((".safetensors", ".bin"))
        etag = hashlib.sha256(content).hexdigest() if large else git_sha1(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit(repo)}
        if hub.gated and not on_cdn and not self.headers.get("Authorization"):
            self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif large and hub.cdn and not on_cdn:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            self.reply(302, b"", headers | {"Location": f"{hub.cdn}/cdn{self.path}"})
        else:
            self.content(path, content, headers)

    def content(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a file, ranges honoured, with the next fault that was ordered for it."""
        faults = self.hub.faults[path] if self.command == "GET" else []
        fault = faults.pop(0) if faults else ("none",)
        if fault[0] == "status":
            self.reply(fault[1], b"", fault[2])
            return
        if fault[0] == "corrupt":
            content = bytes(byte ^ 0x55 for byte in content)
        start, total = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and fault[0] != "norange":
            start = int(asked[1]) + (fault[1] if fault[0] == "range" else 0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        body = content[start:]
        extra = fault[1] if fault[0] == "long" else 0
        self.send_header("Content-Length", str(len(body) + extra))
        self.end_headers()
        if self.command == "GET":
            self.send_body(body + b"\0" * extra, fault)

    def send_body(self, body: bytes, fault: tuple[Any, ...]) -> None:
        if fault[0] == "cut":
            self.wfile.write(body[: fault[1]])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        elif fault[0] == "slow":
            for i in range(0, len(body), max(1, len(body) // 5)):
                self.wfile.write(body[i : i + max(1, len(body) // 5)])
                self.wfile.flush()
                time.sleep(fault[1])
        elif fault[0] == "stall":
            self.wfile.flush()
            time.sleep(fault[1])
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A running FakeHub that both endpoints point to, empty caches, and an impatient client."""
    fake = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": fake})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = fake.link_host = f"http://127.0.0.1:{server.server_port}"
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", fake.url)
    policy = Policy(timeout=30, attempts=4, connect_attempts=2, backoff=0.001, max_wait=0.01)
    for module in (download, huggingface, modelscope):
        monkeypatch.setattr(module, "POLICY", policy)
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def model_files(tmp_path: Path) -> dict[str, bytes]:
    """The files of a small model as a repository holds them, with some that nobody wants."""
    path = tmp_path / "made.safetensors"
    save_file({"model.norm.weight": torch.arange(50_000, dtype=torch.float32)}, path)
    weights = path.read_bytes()
    path.unlink()
    return {
        "config.json": b'{"model_type": "qwen2"}',
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}' * 50,
        "merges.txt": b"#version: 0.2\n",
        "README.md": b"# A model\n",
        "LICENSE": b"Apache License\n",
        "model.safetensors": weights,
        "pytorch_model.bin": b"pickled",
        ".gitattributes": b"*.bin filter=lfs\n",
        "original/params.json": b"{}",
    }
