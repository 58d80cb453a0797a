"""A multipart body → a file on disk and the fields beside it, never more than allowed.

The bytes go to the disk as they come; they are held against the limits, and room is taken for them,
before they are written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from qwenkit.prompt.tokenizer import replace_surrogates
from qwenkit.server.errors import ApiError, bad_value

MAX_PARTS, MAX_FIELD = 16, 1024
LONGEST_BOUNDARY = 70
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it tells what clients sent


class Upload:
    """The parser's callbacks."""

    def __init__(self, file: BinaryIO, take: Callable[[int], None]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.done = False
        self._file, self._take, self._parts = file, take, 0
        self._content: list[bytes] = []
        self._pieces: list[bytes] = []
        self._name = b""
        self._header, self._value = b"", b""
        self._head: dict[bytes, bytes] = {}
        self._is_file = False

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError(400, f"The form has more than {MAX_PARTS} parts.", close=True)
        self._head, self._pieces = {}, []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._head[self._header.lower()] = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._head.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"")
        self._is_file = b"filename" in options
        if self._is_file:
            if self._name != b"file" or self.filename is not None:
                raise ApiError(400, "The form must have one file, named `file`.", close=True)
            name = options[b"filename"].decode("utf-8", "replace").replace("\\", "/")
            self.filename = "".join(c for c in name.rpartition("/")[2] if c.isprintable())[:255]

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content.append(data[start:end])
            return
        self._pieces.append(data[start:end])
        if sum(map(len, self._pieces)) > MAX_FIELD:
            raise ApiError(400, "A field of the form is too long.", close=True)

    def on_part_end(self) -> None:
        if self._is_file:
            return
        name, value = (b.decode("utf-8", "replace") for b in (self._name, b"".join(self._pieces)))
        if name in self.fields:
            raise bad_value(name[:100], f"The field '{name[:100]}' appears twice.")
        self.fields[replace_surrogates(name)] = value

    def on_end(self) -> None:
        self.done = True

    def write(self) -> None:
        """Write what was parsed of the file, if there is room. Errors: those of `take`."""
        content = b"".join(self._content)
        self._content.clear()
        self._take(len(content))
        self._file.write(content)
        self.size += len(content)


async def receive(request: Request, path: Path, most: int, take: Callable[[int], None]) -> Upload:
    """Write the form's file to `path`. `take` is called, in a thread, with each number of bytes
    before they are written, and raises where there is no room for them.

    Errors: ApiError 413 as soon as the body is over `most` bytes, 415, 400; those of `take`;
    ClientDisconnect.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= LONGEST_BOUNDARY:
        text = "The body must be a form; send `Content-Type: multipart/form-data; boundary=…`."
        raise ApiError(415, text, code="unsupported_media_type", close=True)
    total = 0
    with path.open("wb") as file:
        upload = Upload(file, take)
        names = [name for name in dir(Upload) if name.startswith("on_")]
        callbacks = {name: getattr(upload, name) for name in names}
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

        def add(piece: bytes) -> None:
            parser.write(piece)
            upload.write()

        try:
            async for piece in request.stream():
                total += len(piece)
                if total > most:
                    text = f"The file is larger than {most} bytes."
                    raise ApiError(413, text, code="request_too_large", close=True)
                await asyncio.to_thread(add, piece)
            parser.finalize()
        except FormParserError:
            raise ApiError(400, "The body is not a well-formed form.", close=True) from None
    if not upload.done:
        raise ApiError(400, "The body ends within the form.")
    return upload
