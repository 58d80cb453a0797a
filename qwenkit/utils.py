"""Small plain-Python helpers that every floor may use: atomic files, human sizes, JSON reading."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qwenkit.errors import FormatError

_PULL_AGAIN = "Fetch the model again with `qwenkit pull`."


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it, rename it over `path`, fsync the
    directory.

    On any failure (full disk, exception in the body) the temporary file is removed and `path` is
    untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_dir(path.parent)


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Make renames and new names inside a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically, UTF-8 without ASCII escapes, with a final newline."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def read_json(path: str | os.PathLike[str], *, max_bytes: int = 64 << 20) -> Any:
    """Read a JSON file. Errors: FormatError naming the file when it is missing, too large or not
    JSON.
    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path} is not valid JSON ({error}).", "Fetch the file again."
        ) from error


def read_text(path: str | os.PathLike[str], *, max_bytes: int = 64 << 20) -> str:
    """Read a regular UTF-8 file; pipes, devices and directories are refused without blocking.

    Errors: FormatError naming the file when it is missing, no such file, too large or not UTF-8.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{path} is not a regular file.", _PULL_AGAIN)
            # One that grows meanwhile is seen by the byte too many.
            data = file.read(max_bytes + 1) if status.st_size <= max_bytes else None
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing.", _PULL_AGAIN) from error
    except IsADirectoryError as error:
        raise FormatError(f"{path} is a directory, not a file.", _PULL_AGAIN) from error
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    if data is None or len(data) > max_bytes:
        raise FormatError(
            f"{path} has more than {max_bytes} bytes.", "It is not what its name says."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 ({error.reason}).", "Fetch it again.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def memory_returned() -> Iterator[None]:
    """Blocks of 1 MiB and more that are freed meanwhile go back to the system at once, and what
    else is free goes at the end.

    The C library keeps them otherwise, in the gaps between what lives on: up to half as much again
    as a model. Afterwards it is as usual, since a step's buffers are better kept. Only glibc.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    assert libc is not None
    trim_threshold, mmap_threshold = -1, -3  # <malloc.h>
    libc.mallopt(mmap_threshold, 1 << 20)
    try:
        yield
    finally:
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)


def human_bytes(count: float) -> str:
    """1536 → '1.5 KiB'. Binary units, one decimal above bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_count(count: float) -> str:
    """494_032_768 → '494.0M'. Decimal units, as model sizes are quoted."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= limit:
            return f"{count / limit:.2f}{unit}" if unit == "B" else f"{count / limit:.1f}{unit}"
    return f"{count:.0f}"
