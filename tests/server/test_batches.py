"""`/v1/files` and `/v1/batches` through the official client against real servers."""

from __future__ import annotations

import http.client
import io
import json
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from qwenkit.errors import OptionError
from qwenkit.server.data import DataFolder
from qwenkit.server.openai import batches
from qwenkit.server.openai.batch_run import ENDED

MODEL = "tiny-instruct"
SUM = [{"role": "user", "content": "What is 12 + 30?"}]
CHAT = "/v1/chat/completions"
LIMITS = ("--max-file-bytes", "200000", "--max-files", "40", "--max-body-bytes", "20000")


@pytest.fixture(scope="module")
def limited(live_of: Callable[..., Any]) -> Any:
    return live_of(*LIMITS, "--max-batch-lines", "50", "--batch-concurrency", "4")


@pytest.fixture(scope="module")
def api(limited: Any, client_for: Callable[..., OpenAI]) -> OpenAI:
    return client_for(limited)


def row(name: Any, body: Any, url: str = CHAT, **more: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body, **more}


def send(api: OpenAI, rows: list[Any], name: str = "in.jsonl") -> str:
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows]
    return api.files.create(file=(name, b"\n".join(lines)), purpose="batch").id


def ended(api: OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + 200
    while True:
        batch = api.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        assert time.monotonic() < deadline, batch.status
        time.sleep(0.05)


def run(api: OpenAI, rows: list[Any], endpoint: Any = CHAT) -> Any:
    batch = api.batches.create(
        input_file_id=send(api, rows), endpoint=endpoint, completion_window="24h"
    )
    assert batch.status == "validating"
    return ended(api, batch.id)


def records(api: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in api.files.content(file_id).text.splitlines()]


# --- files ------------------------------------------------------------------------------------


def test_a_file_is_kept_listed_read_and_deleted(api: OpenAI) -> None:
    data = b'{"custom_id": "a"}\n\x00\xff anything'
    file = api.files.create(file=("dir/../na\nme.jsonl", data), purpose="batch")
    assert (file.object, file.bytes, file.purpose) == ("file", len(data), "batch")
    assert "/" not in file.filename and "\n" not in file.filename
    assert api.files.retrieve(file.id) == file
    assert api.files.content(file.id).read() == data
    assert file.id in [each.id for each in api.files.list()]
    assert file.id in [each.id for each in api.files.list(purpose="batch", limit=1)]
    assert not list(api.files.list(purpose="vision"))
    assert api.files.delete(file.id).deleted
    for ask in (api.files.retrieve, api.files.content, api.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(file.id)
        assert caught.value.code == "not_found"


@pytest.mark.parametrize("name", ["../lock", "..%2Flock", "file-", "%00", "x" * 300, "file-a.json"])
def test_an_id_is_never_a_path(limited: Any, name: str) -> None:
    for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{name}"):
        answer = httpx.get(limited.url + path)
        assert answer.status_code == 404 and "error" in answer.json(), path


def test_what_is_wrong_with_an_upload(api: OpenAI, limited: Any) -> None:
    for purpose, code in (("vision", "unsupported_parameter"), ("no", "invalid_value")):
        with pytest.raises(openai.BadRequestError) as caught:
            api.files.create(file=("a", b"x"), purpose=purpose)  # type: ignore[arg-type]
        assert (caught.value.param, caught.value.code) == ("purpose", code)
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=("a", b""), purpose="batch")
    assert (caught.value.param, caught.value.code) == ("file", "empty_file")
    url = f"{limited.url}/v1/files"
    head = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nxyz\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    purpose_part, end = field % (b"purpose", b"batch"), b"--b--\r\n"
    for body, status, param in (
        (b"", 400, None),
        (b"nonsense", 400, None),
        (part, 400, None),
        (part + end, 400, "purpose"),
        (purpose_part + end, 400, "file"),
        (part + part + purpose_part + end, 400, None),
        (part + purpose_part * 2 + end, 400, "purpose"),
        (part + purpose_part + field % (b"more", b"x") + end, 400, "more"),
        (part + field % (b"purpose", b"x" * 5000) + end, 400, None),
        (b"".join(field % (b"a%d" % i, b"x") for i in range(20)) + end, 400, None),
        (part + purpose_part + end, 200, None),
    ):
        answer = httpx.post(url, content=body, headers=head)
        assert answer.status_code == status, (body[:200], answer.text)
        if status == 400:
            assert answer.json()["error"]["param"] == param, body[:200]
    for kind in (
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=" + "b" * 99,
    ):
        answer = httpx.post(url, content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415, kind


def test_a_file_that_is_too_large_is_refused_while_it_comes(limited: Any, api: OpenAI) -> None:
    before = [each.id for each in api.files.list()]
    with pytest.raises(openai.APIStatusError) as caught:
        api.files.create(file=("a", b"x" * 300_000), purpose="batch")
    assert caught.value.status_code == 413 and caught.value.code == "request_too_large"
    sent = 0

    def endless() -> Any:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        while sent < 100 << 20:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    head = {"content-type": "multipart/form-data; boundary=b"}
    try:
        answer = httpx.post(f"{limited.url}/v1/files", content=endless(), headers=head)
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # the connection was closed while we were still writing
    assert sent < 50 << 20
    assert [each.id for each in api.files.list()] == before


BEGIN = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
END = b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
ROOM = 100_000


class Uploading:
    """An upload of 40,000 bytes of which 30,000 have been sent."""

    def __init__(self, server: Any) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=30)
        size = len(BEGIN) + 40_000 + len(END)
        head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        self.socket.sendall(head.encode() + BEGIN + b"x" * 30_000)

    @property
    def answered(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def answer(self) -> tuple[int, Any]:
        with self.socket, http.client.HTTPResponse(self.socket) as answer:
            answer.begin()
            return answer.status, json.loads(answer.read())


def test_uploads_at_once_stay_within_the_room_for_all(
    live_of: Callable[..., Any], client_for: Callable[..., OpenAI], tmp_path: Path
) -> None:
    server = live_of("--data-dir", str(tmp_path), "--max-files-bytes", str(ROOM))
    api = client_for(server)

    def on_disk() -> int:
        return sum(each.stat().st_size for each in tmp_path.glob("*/files/*[!n]"))

    def wait(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert on_disk() <= ROOM
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def room_is_whole() -> bool:
        """All of it can be had once everything is deleted, and not a byte more."""
        for file in list(api.files.list()):
            api.files.delete(file.id)
        file = api.files.create(file=("a", b"x" * ROOM), purpose="batch")
        with pytest.raises(openai.BadRequestError) as caught:
            api.files.create(file=("a", b"x"), purpose="batch")
        assert caught.value.code == "storage_full"
        return api.files.delete(file.id).deleted

    uploads: list[Uploading] = []
    for _ in range(8):
        before = on_disk()
        uploads.append(Uploading(server))
        # The last bytes may be in the buffer of the file.
        wait(lambda last=uploads[-1], least=before + 20_000: last.answered or on_disk() >= least)  # type: ignore[misc]
    refused, held = uploads[3:], uploads[:3]
    for each in refused:
        status, answer = each.answer()
        assert (status, answer["error"]["code"]) == (400, "storage_full")
    assert not any(each.answered for each in held)
    held[0].socket.close()  # its room is for the others
    held[1].socket.sendall(b"x" * 10_000 + END)
    assert held[1].answer()[1]["bytes"] == 40_000
    held[2].socket.sendall(b"x" * 10_000 + END.replace(b"batch", b"vision"))
    assert held[2].answer()[1]["error"]["code"] == "unsupported_parameter"
    wait(lambda: on_disk() == 40_000)
    assert room_is_whole()

    def upload(_: int) -> str:
        try:
            return api.files.create(file=("a", b"x" * 40_000), purpose="batch").id
        except openai.BadRequestError as error:
            return error.code or ""

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(upload, range(24)))
    kept = {file.id: file.bytes for file in api.files.list()}
    assert sum(kept.values()) <= ROOM and on_disk() <= ROOM
    assert set(found) - kept.keys() == {"storage_full"}
    assert room_is_whole()


# --- batches ----------------------------------------------------------------------------------


def test_each_endpoint_answers_as_it_does_live(api: OpenAI) -> None:
    live_chat = api.chat.completions.create(model=MODEL, messages=SUM, max_tokens=16)  # type: ignore[arg-type]
    for url, body, read in (
        (
            CHAT,
            {"messages": SUM, "max_tokens": 16},
            lambda found: found["choices"][0]["message"]["content"],
        ),
        (
            "/v1/completions",
            {"prompt": "Once", "max_tokens": 4},
            lambda found: found["choices"][0]["text"],
        ),
        ("/v1/embeddings", {"input": "x"}, lambda found: found["data"][0]["embedding"]),
        (
            "/v1/responses",
            {"input": "What is 12 + 30?", "max_output_tokens": 16},
            lambda found: found["output"][0]["content"][0]["text"],
        ),
    ):
        rows = [row(f"r{i}", {"model": MODEL, **body}, url) for i in range(6)]
        batch = run(api, rows, url)
        counts = batch.request_counts
        assert (batch.status, counts.total, counts.completed, counts.failed) == (
            "completed",
            6,
            6,
            0,
        )
        assert batch.error_file_id is None and batch.in_progress_at and batch.completed_at
        found = records(api, batch.output_file_id)
        assert [each["custom_id"] for each in found] == [f"r{i}" for i in range(6)]
        assert all(each["error"] is None for each in found)
        assert all(each["response"]["status_code"] == 200 for each in found)
        values = [read(each["response"]["body"]) for each in found]
        assert values[0]
        if url == CHAT:
            assert values == [live_chat.choices[0].message.content] * 6
        output = api.files.retrieve(batch.output_file_id)
        assert output.purpose == "batch_output"


def test_a_bad_line_is_that_lines_own_error(api: OpenAI) -> None:
    good = {"model": MODEL, "messages": SUM, "max_tokens": 4}
    deep = b"[" * 70 + b"]" * 70
    rows: list[tuple[Any, int, str | None]] = [
        (row("good", good), 200, None),
        (b"no json", 400, None),
        (b"[1]", 400, None),
        (b'{"custom_id": "a", "custom_id": "b"}', 400, None),
        (b'{"custom_id": ' + deep + b"}", 400, None),
        (row(None, good), 400, "invalid_value"),
        (row("good", good), 400, "duplicate_custom_id"),
        (row("m", good) | {"method": "GET"}, 400, "invalid_value"),
        (row("u", good, "/v1/completions"), 400, "mismatched_endpoint"),
        (row("x", good, x=1), 400, "unknown_parameter"),
        (row("b", None), 400, "invalid_type"),
        (row("s", {**good, "stream": True}), 400, "unsupported_parameter"),
        (row("n", {**good, "n": 9}), 400, "integer_above_max_value"),
        (row("t", {**good, "temperature": 9}), 400, "decimal_above_max_value"),
        (row("f", {**good, "nonsense": 1}), 400, "unknown_parameter"),
        (row("o", {**good, "model": "other"}), 404, "model_not_found"),
        (row("c", {**good, "max_tokens": 5000}), 400, "context_length_exceeded"),
        (row("big", {**good, "user": "x" * 30_000}), 413, "request_too_large"),
        (row("last", good), 200, None),
    ]
    batch = run(api, [each for each, _, _ in rows])
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed) == ("completed", len(rows), 2)
    assert counts.failed == len(rows) - 2
    output = records(api, batch.output_file_id)
    assert [each["custom_id"] for each in output] == ["good", "last"]
    errors = records(api, batch.error_file_id)
    wanted = [(status, code) for _, status, code in rows if status != 200]
    found = [(e["response"]["status_code"], e["error"]["code"]) for e in errors]
    assert found == wanted
    assert [each["response"]["body"]["error"]["code"] for each in errors] == [c for _, c in wanted]
    assert [each["error"]["line"] for each in errors] == list(range(2, len(rows)))
    for each in errors:
        told, inner = each["error"], each["response"]["body"]["error"]
        assert told["message"] == f"Line {told['line']}: {inner['message']}"
        assert "body" not in inner["message"] or told["param"] == "body", inner
        assert told["param"] == inner["param"]
    names = [None] * 5 + "good m u x b s n t f o c".split() + [None]
    assert [each["custom_id"] for each in errors] == names


def test_files_that_are_no_batch(api: OpenAI) -> None:
    blank, much = [b"\n\n  \n"], [b"", *[b"{}"] * 51]
    for rows, code, line in ((blank, "empty_file", None), (much, "too_many_requests", 52)):
        batch = run(api, rows)
        assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
        (error,) = batch.errors.data
        assert (error.code, error.line, error.param) == (code, line, "input_file_id")


def test_what_is_wrong_with_a_batch(api: OpenAI) -> None:
    file = send(api, [row("a", {})])
    good: Any = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    for wish, param in (
        ({"input_file_id": "file-no"}, "input_file_id"),
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"extra_body": {"x": 1}}, "x"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            api.batches.create(**{**good, **wish})
        assert caught.value.param == param
    for ask in (api.batches.retrieve, api.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask("batch_no")


def test_a_batch_is_cancelled_and_listed(api: OpenAI) -> None:
    story = [{"role": "user", "content": "Tell me a story."}]
    body = {"model": MODEL, "messages": story, "ignore_eos": True, "max_tokens": 1500}
    file = send(api, [row(f"r{i}", body) for i in range(30)])
    batch = api.batches.create(
        input_file_id=file, endpoint=CHAT, completion_window="24h", metadata={"k": "v"}
    )
    while api.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.01)
    assert api.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(api, batch.id)
    assert done.status == "cancelled" and done.cancelled_at and done.metadata == {"k": "v"}
    assert done.request_counts.completed < 30
    with pytest.raises(openai.BadRequestError):
        api.batches.cancel(batch.id)
    assert batch.id in [each.id for each in api.batches.list(limit=2)]


def test_a_killed_server_goes_on_where_it_was(
    live_of: Callable[..., Any], client_for: Callable[..., OpenAI], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    flags = ("--data-dir", str(folder), "--batch-concurrency", "2")
    first = live_of(*flags)
    api = client_for(first)
    body = {"model": MODEL, "messages": SUM, "ignore_eos": True, "max_tokens": 120}
    file = send(api, [row(f"r{i}", body) for i in range(24)])
    batch = api.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    while api.batches.retrieve(batch.id).request_counts.completed < 3:  # type: ignore[union-attr]
        time.sleep(0.01)
    with pytest.raises(OptionError, match="in use"):
        DataFolder(str(folder))
    first.stop(signal.SIGKILL)
    (journal,) = folder.rglob("*.journal")
    with journal.open("ab") as half:
        half.write(b'{"line": 20, "good": tr')
    before = len(journal.read_bytes().splitlines()) - 1
    assert 3 <= before < 24
    assert folder.stat().st_mode & 0o777 == 0o700
    second = live_of(*flags)
    done = ended(client_for(second), batch.id)
    assert done.status == "completed" and done.request_counts.completed == 24
    found = records(client_for(second), done.output_file_id)
    assert [each["custom_id"] for each in found] == [f"r{i}" for i in range(24)]
    assert not list(folder.rglob("*.journal")) and not list(folder.rglob("*.tmp"))


def test_a_batch_outlives_a_drain(
    live_of: Callable[..., Any], client_for: Callable[..., OpenAI], tmp_path: Path
) -> None:
    """Lines that run may finish or are begun again; none is told that the server had to go."""
    flags = ("--data-dir", str(tmp_path / "data"), "--batch-concurrency", "4")
    first = live_of(*flags, "--drain-timeout", "1")
    api = client_for(first)
    body = {"model": MODEL, "messages": SUM, "ignore_eos": True, "max_tokens": 400}
    file = send(api, [row(f"r{i}", body) for i in range(40)])
    batch = api.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    while api.batches.retrieve(batch.id).request_counts.completed < 2:  # type: ignore[union-attr]
        time.sleep(0.01)
    assert first.stop(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(first.log)
    (journal,) = (tmp_path / "data").rglob("*.journal")
    assert 2 <= len(journal.read_bytes().splitlines()) < 40
    api = client_for(live_of(*flags))
    done = ended(api, batch.id)
    assert done.status == "completed" and done.request_counts.completed == 40
    assert [each["custom_id"] for each in records(api, done.output_file_id)] == [
        f"r{i}" for i in range(40)
    ]


def test_a_batch_expires(
    client_of: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered is kept; every other line is told."""
    monkeypatch.setattr(batches, "DAY", 2)
    body = {"model": MODEL, "messages": SUM, "ignore_eos": True, "max_tokens": 1500}
    lines = [json.dumps(row(f"r{i}", body)) for i in range(60)]
    lines[0] = json.dumps(row("r0", {**body, "max_tokens": 1}))
    lines[-1] = "no json"
    with client_of(batch_concurrency=1) as client:
        form: Any = {
            "files": {"file": ("a", "\n".join(lines))},
            "data": {"purpose": "batch"},
        }
        file = client.post("/v1/files", **form).json()["id"]
        wish = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        url = "/v1/batches/" + client.post("/v1/batches", json=wish).json()["id"]
        while (batch := client.get(url).json())["status"] not in ENDED:
            time.sleep(0.05)
        assert batch["status"] == "expired" and batch["expired_at"] >= batch["expires_at"]
        output, errors = (
            list(map(json.loads, client.get(f"/v1/files/{batch[name]}/content").text.splitlines()))
            for name in ("output_file_id", "error_file_id")
        )
    counts = batch["request_counts"]
    assert counts == {"total": 60, "completed": len(output), "failed": len(errors)}
    assert 1 <= len(output) < 60 and len(output) + len(errors) == 60
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    assert all(
        each["error"]["message"].startswith(f"Line {each['error']['line']}: ") for each in errors
    )
    assert all(each["response"] is None for each in errors)
    names = [each["custom_id"] for each in [*output, *errors]]
    assert names == [*(f"r{i}" for i in range(59)), None]


SMALL = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")


def test_a_full_disk_ends_what_needs_it_and_nothing_else(
    live_of: Callable[..., Any], client_for: Callable[..., OpenAI], tmp_path: Path
) -> None:
    """A file system of 400 KB, with room for the input of a batch but not for its answers."""
    mount = f"mount -t tmpfs -o size=400k tmpfs {tmp_path}"
    if subprocess.run([*SMALL, mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    server = live_of(
        "--data-dir", str(tmp_path / "data"), inside=(*SMALL, f'{mount} && exec "$@"', "sh")
    )
    api = client_for(server)
    body = {"model": MODEL, "messages": SUM, "max_tokens": 400, "ignore_eos": True}
    body |= {"logprobs": True, "top_logprobs": 20}
    file = send(api, [row(f"r{i}", body) for i in range(8)])
    batch = api.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    done = ended(api, batch.id)
    assert done.status == "failed" and done.errors.data[0].code == "storage"
    with pytest.raises(openai.InternalServerError) as caught:
        api.files.create(file=("a", b"x" * 500_000), purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (507, "storage_full")
    assert caught.value.response.headers["x-should-retry"] == "false"
    answer = api.chat.completions.create(model=MODEL, messages=SUM, max_tokens=4)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    small = api.files.create(file=("a", b"x"), purpose="batch")
    assert api.files.content(small.id).read() == b"x"
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.log)


def test_another_key_finds_nothing(client_of: Callable[..., TestClient], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-one one\nsk-two two\n")
    with client_of(api_key_file=str(keys)) as client:

        def ask(method: str, path: str, key: str, **more: Any) -> Any:
            headers = {"authorization": f"Bearer {key}"}
            return client.request(method, path, headers=headers, **more)

        form: Any = {"files": {"file": ("a", io.BytesIO(b"{}"))}, "data": {"purpose": "batch"}}
        file = ask("POST", "/v1/files", "sk-one", **form).json()["id"]
        wish = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        batch = ask("POST", "/v1/batches", "sk-one", json=wish).json()["id"]
        for method, path in (
            ("GET", f"/v1/files/{file}"),
            ("GET", f"/v1/files/{file}/content"),
            ("DELETE", f"/v1/files/{file}"),
            ("GET", f"/v1/batches/{batch}"),
            ("POST", f"/v1/batches/{batch}/cancel"),
        ):
            assert ask(method, path, "sk-two").status_code == 404, (method, path)
        stolen = ask("POST", "/v1/batches", "sk-two", json=wish)
        assert stolen.status_code == 400 and stolen.json()["error"]["param"] == "input_file_id"
        for path in ("/v1/files", "/v1/batches"):
            assert ask("GET", path, "sk-two").json()["data"] == []
            assert len(ask("GET", path, "sk-one").json()["data"]) >= 1
