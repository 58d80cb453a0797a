"""Where training rows come from: files, folders, Python's standard library, and the generators.

`read_rows(source)` yields `Row` objects in a fixed order, and a `DataError` object (not raised) for
a row that cannot be used, so that the caller decides whether one bad row ends the run or is skipped
and counted.

A source is one string, `NAME [key=value …]`:

    chats.jsonl rows=5000           a .jsonl file: OpenAI messages, ShareGPT, Alpaca,
                                    prompt/completion, or text
    notes/ tokens=2M                a folder (or one file) of .py, .txt, .md
    stdlib tokens=3M fim=0.5        the sources of the running interpreter's standard library
    synth:arithmetic/zh tokens=1M   a generator of qwenkit.tasks.synth, one language or (without
                                    /zh) all

Keys: tokens, rows (an upper bound), weight (a share of data_tokens), fim (share of
fill-in-the-middle), seed. Special tokens inside files are plain text.
Not covered: Parquet, remote data sets, images.
"""

from __future__ import annotations

import json
import os
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenkit.errors import DataError, OptionError
from qwenkit.tasks.base import LANGUAGES, Task, examples
from qwenkit.tasks.synth import TASKS
from qwenkit.train.rows import Row, parse_row

MAX_LINE_BYTES = 32 << 20
TEXT_SUFFIXES = (".py", ".txt", ".md")
SKIPPED_FOLDERS = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "_bundled",
}
SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo"}
_KEY = re.compile(r"(?:^|\s+)(tokens|rows|weight|fim|seed)=(\S+)$")
_SCALE = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


@dataclass(frozen=True)
class Source:
    """One parsed source string; see the module's docstring for the keys."""

    name: str
    tokens: int | None = None
    rows: int | None = None
    weight: float | None = None
    fim: float = 0.0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Source:
        """Errors: OptionError naming the source and the key."""
        rest, values = text.strip(), dict[str, str]()
        while match := _KEY.search(rest):
            if match[1] in values:
                raise OptionError(f"data source {text!r} gives {match[1]} twice.", "Give it once.")
            values[match[1]] = match[2]
            rest = rest[: match.start()]
        try:
            source = cls(
                name=rest,
                tokens=_count(values["tokens"]) if "tokens" in values else None,
                rows=_count(values["rows"]) if "rows" in values else None,
                weight=float(values["weight"]) if "weight" in values else None,
                fim=float(values.get("fim", 0.0)),
                seed=int(values.get("seed", 0)),
            )
        except ValueError as error:
            raise OptionError(
                f"data source {text!r}: {error}.", "Write for example 'notes.jsonl tokens=2M'."
            ) from None
        good = 0.0 <= source.fim <= 1.0 and (
            source.weight is None or 0 < source.weight < float("inf")
        )
        if not rest or not good or source.tokens == 0 or source.rows == 0:
            raise OptionError(
                f"data source {text!r} has a value out of range.",
                "fim is 0 to 1, the others above 0.",
            )
        return source


def read_rows(source: Source) -> Iterator[Row | DataError]:
    """All rows of a source, endless for generators. Errors: DataError when the source itself is
    missing.
    """
    if source.name.startswith("synth:"):
        return _read_synth(source)
    if source.name == "stdlib":
        return _read_folder(
            Path(sysconfig.get_paths()["stdlib"]), source.seed, suffixes=(".py",), lenient=True
        )
    path = Path(source.name).expanduser()
    if path.is_dir():
        return _read_folder(path, source.seed, suffixes=TEXT_SUFFIXES, lenient=False)
    if not path.is_file():
        raise DataError(
            f"{source.name}: no such file or folder.",
            "Check the path, or use stdlib or synth:SKILL.",
        )
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    if path.suffix in TEXT_SUFFIXES:
        return iter([_read_text(path)])
    raise DataError(
        f"{source.name}: unknown kind of file.",
        "Known: .jsonl, .py, .txt, .md, or a folder of them.",
    )


def is_endless(source: Source) -> bool:
    """True for generators, which need tokens=, rows= or weight=."""
    return source.name.startswith("synth:")


def source_files(source: Source) -> list[Path]:
    """The files whose bytes decide the rows of a source, for cache keys; [] for generators."""
    if is_endless(source):
        return []
    if source.name == "stdlib":
        return _list_folder(Path(sysconfig.get_paths()["stdlib"]), (".py",))
    path = Path(source.name).expanduser()
    return _list_folder(path, TEXT_SUFFIXES) if path.is_dir() else [path]


def _count(text: str) -> int:
    scale = _SCALE.get(text[-1:].lower(), 1)
    value = float(text[:-1] if scale > 1 else text) * scale
    if not 0 <= value < 1e15:
        raise ValueError(f"{text} is not a count")
    return int(value)


# Generators


def _read_synth(source: Source) -> Iterator[Row | DataError]:
    skill, _, lang = source.name.removeprefix("synth:").partition("/")
    names = sorted(TASKS) if skill == "all" else [skill]
    if names[0] not in TASKS:
        raise DataError(
            f"{source.name}: no such skill.", f"Known: all, {', '.join(sorted(TASKS))}."
        )
    if lang and lang not in LANGUAGES:
        raise DataError(f"{source.name}: no such language.", f"Known: {', '.join(LANGUAGES)}.")
    pairs = [(TASKS[name], code) for name in names for code in LANGUAGES if lang in ("", code)]
    streams = [_synth_rows(task, code, source.seed) for task, code in pairs]
    while True:
        for stream in streams:
            yield next(stream)


def _synth_rows(task: Task, lang: str, seed: int) -> Iterator[Row]:
    for number, example in enumerate(examples(task, lang, seed, held_out=False)):
        place = f"synth:{task.name}/{lang}:{number}"
        if example.messages is not None:
            yield Row(place, messages=example.messages, tools=example.tools)
        else:
            yield Row(
                place,
                prompt=example.prompt or "",
                completion=example.completion or "",
                special=True,
            )


# Text


def _list_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = []
    for directory, names, files in os.walk(folder):
        names[:] = sorted(
            name for name in names if name not in SKIPPED_FOLDERS and not name.startswith(".")
        )
        found += [Path(directory, name) for name in sorted(files) if name.endswith(suffixes)]
    return found


def _read_folder(
    folder: Path, seed: int, suffixes: tuple[str, ...], lenient: bool
) -> Iterator[Row | DataError]:
    """Files in an order drawn from the seed, so that a budget takes a fair sample and not the
    letter A.
    """
    files = _list_folder(folder, suffixes)
    random.Random(f"folder/{seed}").shuffle(files)
    for file in files:
        row = _read_text(file)
        # The standard library has a few files in old encodings on purpose; they are no fault of the
        # user.
        if not (lenient and isinstance(row, DataError)):
            yield row


def _read_text(path: Path) -> Row | DataError:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror}).", "Check its permissions.")
    except UnicodeDecodeError as error:
        return DataError(
            f"{path}: not UTF-8 at byte {error.start}.", "Convert it, or use on_bad_row: skip."
        )
    if not text.strip():
        return DataError(f"{path}: empty file.", "Remove it, or use on_bad_row: skip.")
    return Row(str(path), text=text.replace("\r\n", "\n"))


# JSON lines


def _read_jsonl(path: Path) -> Iterator[Row | DataError]:
    """Blank lines are passed over; a byte-order mark and CRLF are accepted."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    pass
                yield DataError(f"{place}: line over {MAX_LINE_BYTES} bytes.", "Split the row.")
                continue
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield _parse_line(line, place)


def _parse_line(line: bytes, place: str) -> Row | DataError:
    try:
        value = json.loads(line.decode("utf-8"))
        return parse_row(value, place)
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:
        return DataError(
            f"{place}: not valid JSON ({error}).", "Fix the line, or use on_bad_row: skip."
        )
