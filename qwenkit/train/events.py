"""What a run tells: a JSONL log, TensorBoard event files, and one progress line on stderr.

The event file is TFRecord framing around hand-encoded protocol buffers
(tensorflow/core/util/event.proto: wall_time 1, step 2, file_version 3, summary 5, session_log 7),
so nothing of TensorBoard is imported. Not covered: histograms, images, text.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from qwenkit.utils import human_count, write_text

_CASTAGNOLI = 0x82F63B78


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class EventWriter:
    """Appends scalars to a TensorBoard event file. `first_step` tells readers to drop what an
    earlier, cut-off run wrote from that step on.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file: BinaryIO = open(directory / name, "ab")
        self._write(_bytes(3, b"brain.Event:2"), 0)
        if first_step > 0:
            self._write(_bytes(7, _varint_field(1, 1)), first_step)  # SessionLog START

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point of each curve."""
        entries = b"".join(
            _bytes(
                1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value)
            )  # tag 1, simple_value 2
            for name, value in values.items()
        )
        self._write(_bytes(5, entries), step)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, payload: bytes, step: int) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + _varint_field(2, step) + payload
        length = struct.pack("<Q", len(event))
        frame = (
            length
            + struct.pack("<I", masked_crc(length))
            + event
            + struct.pack("<I", masked_crc(event))
        )
        self._file.write(frame)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


class JsonLog:
    """One JSON object a line. On resuming, lines after the resumed step are removed, so steps stay
    unique.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if _step_of(line) <= first_step
            ]
            write_text(path, "".join(f"{line}\n" for line in (kept if first_step else [])))
        self._file: TextIO = open(path, "a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line and hand it to the operating system."""
        self._file.write(json.dumps(values, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a log line; a line cut off by a crash counts as after everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Progress:
    """The progress line: rewritten in place on a terminal, one line a log entry elsewhere."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._stream = total, stream or sys.stderr
        self._terminal = self._stream.isatty()

    def show(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        text = (
            f"step {step}/{self._total}  loss {loss:.4f}  {human_count(tokens_per_second)} tok/s  "
            f"{format_seconds(seconds_left)} left"
        )
        self._stream.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        if self._terminal:
            self._stream.write("\n")


def format_seconds(seconds: float) -> str:
    """3723 → '1h02m', 75 → '1m15s', 8 → '8s'."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
