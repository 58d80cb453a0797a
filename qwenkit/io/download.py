"""Fetch one file so that it arrives whole and proven, or leaves a part that the next attempt
continues.

Bytes go to `<name>.incomplete`; a cut connection is continued with a Range request, in this process
or in a later one. The file counts only after its size and digest agree. A wrong digest removes the
part; so does a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from qwenkit.errors import HubError
from qwenkit.io.http import Policy, StatusError, UnreachableError, host_of, open_stream
from qwenkit.io.names import Progress, RemoteFile
from qwenkit.utils import human_bytes

POLICY = Policy()
_CHUNK = 1 << 20
_SPARE = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(
    file: RemoteFile, part: Path, headers: Mapping[str, str], progress: Progress | None = None
) -> None:
    """Bring `part` to the complete, verified content of `file`, continuing what is there.

    Errors: HubError for a wrong size or digest (the part is removed), a full disk (removed) or a
    connection that keeps breaking (kept, to be continued); StatusError and UnreachableError from
    the server. An interrupt keeps the part.
    """
    with disk_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda *_: None)
    resumed = _transfer(file, part, headers, report)
    if digest_fits(file, part):
        return
    part.unlink()
    if resumed:  # The fault may lie in the old part: once more, from the start.
        _transfer(file, part, headers, report)
        if digest_fits(file, part):
            return
        part.unlink()
    raise HubError(
        f"{file.path} from {host_of(file.url)} has the wrong SHA digest; it was removed.",
        "Try again; if it stays so, use the other hub (--source) and report it.",
    )


def _transfer(file: RemoteFile, part: Path, headers: Mapping[str, str], report: Progress) -> bool:
    """Download until `part` has the file's size; say whether something was there before."""
    with disk_errors(part), _open_part(part) as out:
        have = out.seek(0, os.SEEK_END)
        if have > file.size:
            have = out.truncate(0)
            out.seek(0)
        resumed, failures = have > 0, 0
        report(file.path, have, file.size)
        while have < file.size:
            before = have
            try:
                have = _receive(file, out, have, headers, report)
                problem = None if have == file.size else "the connection was cut"
                retry_after = None
            except (StatusError, UnreachableError) as error:
                if isinstance(error, StatusError) and not error.transient:
                    raise
                have, problem = out.tell(), error.message
                retry_after = getattr(error, "retry_after", None)
            if problem is not None:
                failures = 1 if have > before else failures + 1
                if failures >= POLICY.attempts:
                    raise HubError(
                        f"{file.path} stopped at {have} of {file.size} bytes: {problem}",
                        "Run the same command again: it continues there.",
                    )
                POLICY.wait(failures, retry_after)
        out.flush()
        os.fsync(out.fileno())
    return resumed


def _receive(
    file: RemoteFile, out: BinaryIO, have: int, headers: Mapping[str, str], report: Progress
) -> int:
    """One request from `have` on; append what comes; return the new size. Errors: StatusError,
    UnreachableError.
    """
    asked = {**headers, "Range": f"bytes={have}-"} if have else dict(headers)
    with open_stream(file.url, asked, POLICY) as response:
        if have and response.status != 206 or have and not _starts_at(response, have):
            # The server ignores ranges: what it sends is the whole file.
            if response.status == 206:
                raise HubError(
                    f"{host_of(file.url)} answers with the wrong range.",
                    "Use the other hub (--source).",
                )
            have = 0
            out.seek(0)
            out.truncate()
        announced = response.headers.get("Content-Length")
        total = have + int(announced) if announced and announced.isdigit() else file.size
        if total != file.size:
            raise HubError(
                f"{file.path} should have {file.size} bytes; {host_of(file.url)} sends {total}.",
                "Try again later, or use the other hub (--source).",
            )
        while chunk := _read(file.url, response):
            if have + len(chunk) > file.size:
                raise HubError(
                    f"{host_of(file.url)} sends more than {file.size} bytes of {file.path}.",
                    "Try later.",
                )
            out.write(chunk)
            have += len(chunk)
            report(file.path, have, file.size)
    return have


def _read(url: str, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(url, error, before_answer=False) from error


def _starts_at(response: http.client.HTTPResponse, have: int) -> bool:
    return (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")


@contextlib.contextmanager
def _open_part(part: Path) -> Iterator[BinaryIO]:
    """Open for reading and writing, creating it, and never through a link."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(fd, "r+b") as out:
        yield out


def digest_fits(file: RemoteFile, path: Path) -> bool:
    """Hold the content against SHA-256, or git's blob id where a hub gives only that. No digest:
    the size was checked.
    """
    digest: Any
    if file.sha256:
        expected, digest = file.sha256, hashlib.sha256()
    elif file.git_sha1:
        expected, digest = file.git_sha1, hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % file.size)
    else:
        return True
    with disk_errors(path), open(path, "rb") as content:
        while block := content.read(_CHUNK):
            digest.update(block)
    return bool(digest.hexdigest() == expected.lower())


def verified(file: RemoteFile, path: Path) -> bool:
    """Whether `path` already holds exactly this file."""
    try:
        return path.is_file() and path.stat().st_size == file.size and digest_fits(file, path)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the file system's errors into HubError; when the disk is full, `path` is removed first.

    Network errors arrive here as HubError already, so an OSError is the disk's.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            with contextlib.suppress(OSError):
                path.unlink()
            raise HubError(
                f"The disk is full: {path.name} cannot be written to {path.parent}.",
                "Free space, or set HF_HOME (MODELSCOPE_CACHE) to a larger disk.",
            ) from error
        raise HubError(
            f"{error.filename or path} cannot be written: {error.strerror or error}.",
            "Check the permissions, or set HF_HOME (MODELSCOPE_CACHE) to another folder.",
        ) from error


def _size(path: Path) -> int:
    """In bytes; 0 when it is not there, or another process has just put it in its place."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_space(directory: Path, files: Iterable[tuple[RemoteFile, Path]], repo: str) -> None:
    """Refuse before the first byte if the rest does not fit. `files` are the missing ones with
    their parts.
    """
    missing = 0
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for file, part in files:
            missing += file.size - min(_size(part), file.size)
        free = shutil.disk_usage(directory).free
    if missing and missing + _SPARE > free:
        raise HubError(
            f"{repo} needs {human_bytes(missing)} more; {directory} has {human_bytes(free)} free.",
            "Free space, or set HF_HOME (MODELSCOPE_CACHE) to a larger disk.",
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock, so that two processes do not write the same part; waits for the other
    one.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with disk_errors(path):
            while not _try_lock(fd):
                time.sleep(0.1)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
