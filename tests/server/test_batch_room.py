"""The answers of batches count against the room for files, also over a restart."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from qwenkit.server.openai.batch_journal import Journal
from qwenkit.server.openai.batch_run import ENDED, BatchRun
from qwenkit.server.openai.files import NoRoom, Room, check_room
from qwenkit.server.service import Service
from qwenkit.utils import read_json, write_json

MODEL, CHAT = "tiny-instruct", "/v1/chat/completions"
ROOMY = 1 << 20


def line(name: Any, **body: Any) -> str:
    wish = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        **body,
    }
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": wish})


class Api:
    """What the tests ask of one server over one folder."""

    def __init__(self, client: TestClient) -> None:
        self._client = client
        self.service: Service = client.app.state.service  # type: ignore[attr-defined]

    def upload(self, content: str) -> Any:
        form: Any = {"files": {"file": ("a", content)}, "data": {"purpose": "batch"}}
        return self._client.post("/v1/files", **form).json()

    def begin(self, lines: list[str]) -> str:
        return self.start(self.upload("\n".join(lines))["id"])

    def start(self, file: str) -> str:
        wish = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        batch: str = self._client.post("/v1/batches", json=wish).json()["id"]
        return batch

    def batch(self, batch: str) -> Any:
        return self._client.get(f"/v1/batches/{batch}").json()

    def until(self, batch: str, true: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + 60
        while not true(found := self.batch(batch)):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found

    def ended(self, batch: str) -> Any:
        """The batch at its end, when nothing but files takes room."""
        found = self.until(batch, lambda now: now["status"] in ENDED)
        deadline = time.monotonic() + 10
        while any(self.taken()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        counts = found["request_counts"]
        assert counts["completed"] == len(self.records(found["output_file_id"]))
        assert counts["failed"] == len(self.records(found["error_file_id"]))
        return found

    def taken(self) -> tuple[int, int]:
        return self.service.taken_bytes.total(), self.service.taken_files.total()

    def files(self) -> dict[str, Any]:
        return {each["id"]: each for each in self._client.get("/v1/files").json()["data"]}

    def records(self, file: str | None) -> list[Any]:
        if file is None:
            return []
        text = self._client.get(f"/v1/files/{file}/content").text
        assert self.files()[file]["bytes"] == len(text.encode())
        return list(map(json.loads, text.splitlines()))

    def delete(self, file: str) -> None:
        assert self._client.delete(f"/v1/files/{file}").json()["deleted"]

    def cancel(self, batch: str) -> None:
        self._client.post(f"/v1/batches/{batch}/cancel")

    def chat(self) -> int:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        return self._client.post(CHAT, json=body).status_code


@pytest.fixture
def api_of(client_of: Callable[..., TestClient], tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """`api_of(folder, …)`: a server over a folder, which goes on with the batches there."""
    with contextlib.ExitStack() as opened:

        def make(folder: Path = tmp_path, *, resume: bool = True, **options: Any) -> Api:
            given = {"batch_concurrency": 1, **options}
            client = opened.enter_context(client_of(data_dir=str(folder), **given))
            if resume:
                client.portal.call(client.app.state.batches.resume)  # type: ignore
            return Api(client)

        yield make


def names(records: list[Any]) -> list[str]:
    return [each["custom_id"] for each in records]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_batch_that_fills_the_bytes_keeps_what_was_answered(
    api_of: Callable[..., Api], tmp_path: Path, concurrency: int
) -> None:
    room = 8000
    api = api_of(max_files_bytes=room, batch_concurrency=concurrency)
    lines = [line(f"r{i}") for i in range(20)]
    done = api.ended(api.begin(lines))
    (error,) = done["errors"]["data"]
    assert (done["status"], error["code"]) == ("failed", "storage_full")
    assert f"{room} bytes (--max-files-bytes); delete some" in error["message"]
    assert done["finalizing_at"] and done["failed_at"] and not done["completed_at"]
    found = api.records(done["output_file_id"])
    assert 1 <= len(found) < 20 and all(each["response"]["body"]["choices"] for each in found)
    size = sum(each["bytes"] for each in api.files().values())
    largest = max(len(json.dumps(each)) for each in found)
    assert room - concurrency * 2 * largest < size <= room
    assert not list(tmp_path.rglob("*.journal")) and not list(tmp_path.rglob("*.tmp"))

    assert api.chat() == 200
    api.delete(done["input_file_id"])
    assert api.upload("x" * (room - size))["bytes"]  # what was free and what was deleted
    for file in api.files():
        api.delete(file)
    again = api.ended(api.begin(lines[:4]))
    assert again["status"] == "completed" and again["errors"] is None
    assert names(api.records(again["output_file_id"])) == ["r0", "r1", "r2", "r3"]


def test_a_batch_needs_a_place_for_each_of_its_files(api_of: Callable[..., Api]) -> None:
    api = api_of(max_files=2)
    batch = api.begin([line("good"), line("also"), line("bad", max_tokens=-1), line("last")])
    done = api.ended(batch)
    (error,) = done["errors"]["data"]
    assert (done["status"], error["code"]) == ("failed", "storage_full")
    assert "at most 2 files (--max-files); delete some" in error["message"]
    assert names(api.records(done["output_file_id"])) == ["good", "also"]
    assert done["error_file_id"] is None and len(api.files()) == 2
    assert api.upload("x")["error"]["code"] == "too_many_files"

    api.delete(done["output_file_id"])
    other = api.ended(api.begin([line("bad", max_tokens=-1)]))
    assert other["errors"]["data"][0]["code"] == "storage_full"  # it would have a third
    assert other["finalizing_at"] is None and other["request_counts"]["total"] == 1
    api.delete(done["input_file_id"])
    again = api.ended(api.start(other["input_file_id"]))
    assert again["status"] == "completed"
    assert names(api.records(again["error_file_id"])) == ["bad"]


def test_a_batch_that_runs_holds_its_place(api_of: Callable[..., Api]) -> None:
    api = api_of(max_files=3)
    slow = {"max_tokens": 1500, "ignore_eos": True}
    batch = api.begin([line("quick"), *(line(f"r{i}", **slow) for i in range(50))])
    api.until(batch, lambda now: now["request_counts"]["completed"] >= 1)
    assert api.taken()[1] == 1
    assert api.upload("x")["id"]
    assert api.upload("x")["error"]["code"] == "too_many_files"
    api.cancel(batch)
    assert api.ended(batch)["status"] == "cancelled"
    assert len(api.files()) == 3


def test_a_batch_can_be_cancelled_while_it_is_validated(
    api_of: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(BatchRun, "_count", lambda _: go.wait(30) and 1)
    api = api_of()
    batch = api.begin([line("never")])
    assert api.batch(batch)["status"] == "validating"
    api.cancel(batch)
    go.set()
    done = api.ended(batch)
    assert done["status"] == "cancelled" and done["output_file_id"] is None


@pytest.fixture(scope="module")
def half_done(client_of: Callable[..., TestClient], tmp_path_factory: Any) -> tuple[Path, str]:
    """The folder of a server that was killed in the middle of a batch of twelve, with half a line
    in its journal.
    """
    folder = tmp_path_factory.mktemp("first")
    with client_of(data_dir=str(folder), batch_concurrency=1) as client:
        api, copy = Api(client), tmp_path_factory.mktemp("copy") / "data"
        batch = api.begin([line(f"r{i}", max_tokens=100, ignore_eos=True) for i in range(12)])
        api.until(batch, lambda now: now["request_counts"]["completed"] >= 3)
        shutil.copytree(folder, copy)
        api.cancel(batch)
        api.ended(batch)
    (journal,) = copy.rglob("*.journal")
    assert 3 <= len(journal.read_text().splitlines()) < 12
    with journal.open("ab") as half:
        half.write(b'{"line": 12, "good": true, "record": {"id"')
    return copy, batch


@pytest.fixture
def crashed(half_done: tuple[Path, str], tmp_path: Path) -> tuple[Path, str, list[str]]:
    """A copy of `half_done`, its batch, and the whole lines of its journal."""
    folder, batch = tmp_path / "data", half_done[1]
    shutil.copytree(half_done[0], folder)
    (journal,) = folder.rglob("*.journal")
    return folder, batch, journal.read_text().splitlines()[:-1]


def bytes_of(folder: Path, rows: list[str]) -> int:
    """What the input file and the output of these rows of the journal have."""
    whole = sum(path.stat().st_size for path in folder.rglob("file-*[!n]"))
    records = [json.dumps(json.loads(row)["record"], ensure_ascii=False) for row in rows]
    return whole + sum(len(each.encode()) + 1 for each in records)


@pytest.mark.parametrize("more", ["plenty", "a little", "nothing", "less than nothing"])
def test_a_new_server_counts_what_it_finds(
    api_of: Callable[..., Api], crashed: tuple[Path, str, list[str]], more: str
) -> None:
    folder, batch, rows = crashed
    used, record = bytes_of(folder, rows), len(rows[0])
    room = used + {"plenty": ROOMY, "a little": 2 * record, "nothing": 0}.get(more, -record)
    api = api_of(folder, max_files_bytes=room)
    done = api.ended(batch)
    found = names(api.records(done["output_file_id"]))
    assert found == [f"r{i}" for i in range(len(found))]
    size = sum(each["bytes"] for each in api.files().values())
    if more == "plenty":
        assert done["status"] == "completed" and len(found) == 12
    else:
        assert done["status"] == "failed" and done["errors"]["data"][0]["code"] == "storage_full"
        assert size <= max(room, used)
        assert (len(found) > len(rows)) == (more == "a little")
        assert len(found) >= len(rows)
    assert not list(folder.rglob("*.journal")) and not list(folder.rglob("*.tmp"))


def test_what_was_answered_counts_before_anybody_can_upload(
    api_of: Callable[..., Api], crashed: tuple[Path, str, list[str]]
) -> None:
    folder, batch, rows = crashed
    api = api_of(folder, resume=False)
    tenant = api.service.batches.tenants()[0]
    found = api.service.batches.get(tenant, batch)
    input_size = api.service.files.get(tenant, found["input_file_id"])["bytes"]
    journal = Journal(api.service, tenant, found)
    assert api.taken()[0] >= bytes_of(folder, rows) - input_size
    journal.read()
    assert api.taken() == (bytes_of(folder, rows) - input_size, 1)
    assert len(journal.done) == len(rows) == found["request_counts"]["completed"]
    journal.close()
    journal.close()
    assert api.taken() == (0, 0)


@pytest.mark.parametrize("errors", [None, {"object": "list", "data": [{"code": "storage_full"}]}])
def test_a_server_that_ended_in_the_last_moment_has_made_no_file_twice(
    api_of: Callable[..., Api], crashed: tuple[Path, str, list[str]], errors: Any
) -> None:
    """It had made the output file, and had not yet said so in the batch."""
    folder, batch, rows = crashed
    (state,) = folder.rglob(f"{batch}.json")
    write_json(state, {**read_json(state), "status": "finalizing", "errors": errors})
    first = api_of(folder, resume=False)
    tenant = first.service.batches.tenants()[0]
    journal = Journal(first.service, tenant, {**first.service.batches.get(tenant, batch)})
    journal.read()
    journal.finish()
    journal.close()
    copy = folder.parent / "second"
    shutil.copytree(folder, copy)

    second = api_of(copy, max_files_bytes=bytes_of(folder, []), max_files=2)
    done = second.ended(batch)
    assert done["status"] == ("failed" if errors else "completed")
    assert len(second.files()) == 2 and done["output_file_id"] in second.files()
    assert len(second.records(done["output_file_id"])) == len(rows)

    (left,) = copy.glob("*/batches")
    (left / f"{batch}.journal").write_text("\n".join(rows) + "\n")
    third = folder.parent / "third"
    shutil.copytree(copy, third)
    after = api_of(third)
    assert after.batch(batch)["status"] == done["status"] and after.taken() == (0, 0)
    assert not list(third.rglob("*.journal"))


def test_a_batch_whose_answers_were_lost_says_so(
    api_of: Callable[..., Api], crashed: tuple[Path, str, list[str]]
) -> None:
    folder, batch, _ = crashed
    (state,) = folder.rglob(f"{batch}.json")
    write_json(state, {**read_json(state), "status": "finalizing"})
    (journal,) = folder.rglob("*.journal")
    journal.unlink()
    done = api_of(folder).ended(batch)
    assert done["status"] == "failed" and done["errors"]["data"][0]["code"] == "storage"


def test_rooms_share_what_there_is(client_of: Callable[..., TestClient], tmp_path: Path) -> None:
    client = client_of(data_dir=str(tmp_path), max_files_bytes=2000, max_files=3)
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    one, two = Room(service, "a"), Room(service, "a", uploaded=True)
    one.take(1500, 1)
    with pytest.raises(NoRoom, match="All files together may have 2000 bytes") as caught:
        two.take(501)
    assert caught.value.close
    two.take(500, 2)
    with pytest.raises(NoRoom, match="at most 3 files") as caught:
        two.take(0, 1)
    assert not caught.value.close
    check_room(service, "b", 2000, 3)  # another tenant's is its own
    one.close()
    one.hold(100)  # a thread that is left over
    check_room(service, "a", 1500, 1)
    two.give(500, 2)
    assert (service.taken_bytes["a"], service.taken_files["a"]) == (0, 0)


def test_takes_at_once_stay_within_the_room(
    client_of: Callable[..., TestClient], tmp_path: Path
) -> None:
    client = client_of(data_dir=str(tmp_path), max_files_bytes=10_000)
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    rooms = [Room(service, "a") for _ in range(8)]

    def work(room: Room) -> None:
        with contextlib.suppress(NoRoom):
            while True:
                room.take(7)

    threads = [threading.Thread(target=work, args=(room,)) for room in rooms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.taken_bytes["a"] == 10_000 // 7 * 7
    for room in rooms:
        room.close()
    assert service.taken_bytes["a"] == 0
