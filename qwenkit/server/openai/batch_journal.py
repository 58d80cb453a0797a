"""What a batch has answered so far, and the room that it takes among its tenant's files.

    BATCH.journal    one JSON object a line: {"line": number, "good": bool, "record": {…}}

Each record is a line of the output file (or of the error file, if it is not good), which are made
of the journal at the end, in the order of the input, and appear whole. Their bytes, and the files
themselves, count against the tenant's limits from before a record is written here until they are
files. A server that starts again counts what it finds, and goes on behind the last whole line.

While the files are made, the disk holds their content twice.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from typing import Any, BinaryIO

from qwenkit.server.errors import ApiError
from qwenkit.server.openai.files import NoRoom, Room, check_room, keep, new_path
from qwenkit.server.service import Service

RECORD = b'"record": '
NAMES = {True: "output", False: "error"}


class Journal:
    """The journal of one batch. One thread at a time."""

    def __init__(self, service: Service, tenant: str, batch: dict[str, Any]) -> None:
        self._service, self._tenant, self._batch = service, tenant, batch
        self._path = service.batches.path(tenant, batch["id"]).with_suffix(".journal")
        self._file: BinaryIO | None = None
        self.done: set[int] = set()
        """Numbers of the lines that are in it."""
        self._sizes = {True: 0, False: 0}
        """Bytes of the output and of the error file."""
        self._room = Room(service, tenant)
        self._guess = self._path.stat().st_size if self.exists else 0
        self._room.hold(self._guess)  # until it has been read, and before anybody uploads

    @property
    def exists(self) -> bool:
        """Whether anything was written."""
        return self._path.exists()

    def read(self) -> None:
        """Count what is there; a torn last line is cut off."""
        counts = self._batch["request_counts"]
        counts["completed"] = counts["failed"] = 0
        if self.exists:
            with self._path.open("r+b") as file:
                end = 0
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    row = json.loads(line)
                    self.done.add(row["line"])
                    counts["completed" if row["good"] else "failed"] += 1
                    self._sizes[row["good"]] += len(_record(line))
                    end += len(line)
                file.truncate(end)
        for good, size in self._sizes.items():
            if size and self._made(good) is None:
                self._room.hold(size, 1)
        self._room.give(self._guess)
        self._guess = 0

    def check_room(self) -> None:
        """Errors: ApiError when there is no room for any answer."""
        try:
            check_room(self._service, self._tenant, 1)
        except NoRoom as full:
            raise _too_full(full) from None

    def note(self, number: int, custom_id: Any, response: Any, error: Any) -> None:
        """Write the record of a line. Errors: ApiError when there is no room for it; OSError."""
        good = error is None
        record = {
            "id": f"batch_req_{secrets.token_hex(16)}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        row = {"line": number, "good": good, "record": record}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        size = len(_record(line))
        try:
            self._room.take(size, 0 if self._sizes[good] else 1)
        except NoRoom as full:
            raise _too_full(full) from None
        if self._file is None:
            self._file = self._path.open("ab")
        self._file.write(line)
        self._file.flush()
        self._sizes[good] += size
        self.done.add(number)
        self._batch["request_counts"]["completed" if good else "failed"] += 1

    def finish(self) -> None:
        """Make the output and the error file, unless a server that ended then has done it."""
        if not self.exists:
            return
        rows: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        with self._path.open("rb") as journal:
            offset = 0
            for line in journal:
                row = json.loads(line)
                rows[row["good"]].append((row["line"], offset))
                offset += len(line)
            for good, name in NAMES.items():
                if rows[good]:
                    made = self._made(good) or self._make(good, journal, sorted(rows[good]))
                    self._batch[f"{name}_file_id"] = made["id"]

    def close(self) -> None:
        """Give back the room that is not a file's by now. Closing again changes nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk was told when it was met
                self._file.close()
            self._file = None
        self._room.close()

    def remove(self) -> None:
        """It is not needed any more."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _made(self, good: bool) -> dict[str, Any] | None:
        name = self._name(good)
        for each in self._service.files.all(self._tenant).values():
            if each["filename"] == name and each["purpose"] == "batch_output":
                return each
        return None

    def _name(self, good: bool) -> str:
        return f"{self._batch['id']}_{NAMES[good]}.jsonl"

    def _make(self, good: bool, journal: BinaryIO, rows: list[tuple[int, int]]) -> dict[str, Any]:
        path = new_path(self._service, self._tenant)
        try:
            with path.open("wb") as file:
                for _, offset in rows:
                    journal.seek(offset)
                    file.write(_record(journal.readline()))
            name = self._name(good)
            return keep(self._service, self._tenant, path, name, "batch_output", self._room)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _record(line: bytes) -> bytes:
    """The part of a row that goes into a file, as it stands there."""
    return line[line.index(RECORD) + len(RECORD) : -2] + b"\n"


def _too_full(full: NoRoom) -> ApiError:
    text = f"The batch ended early because its answers found no room: {full.reason}; "
    text += "delete some, and send the lines that were not answered again."
    return ApiError(400, text, code="storage_full")
