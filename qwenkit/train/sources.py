"""Where training rows come from: files, folders, the standard library's sources, and the generators.

`read_rows(source)` yields `Row` objects in a fixed order, and a `DataError` object (not raised) for a row that
cannot be used, so that the caller decides whether one bad row ends the run or is skipped and counted.

A source is one string, `NAME [key=value …]`:

    chats.jsonl rows=5000         a .jsonl file: OpenAI messages, ShareGPT, Alpaca, prompt/completion, or text
    notes/ tokens=2M              a folder (or one file) of .py, .txt, .md
    stdlib tokens=3M fim=0.5      the sources of the running interpreter's standard library
    synth:arithmetic/zh tokens=1M a generator of qwenkit.tasks.synth, one language or (without /zh) all

Keys: tokens, rows (an upper bound), weight (a share of data_tokens), fim (share of fill-in-the-middle), seed.
Special tokens inside files are plain text. Not covered: Parquet, remote data sets, images.
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
from typing import Any

from qwenkit.errors import DataError, OptionError
from qwenkit.tasks.base import LANGUAGES, Task, examples
from qwenkit.tasks.synth import TASKS

MAX_LINE_BYTES = 32 << 20
TEXT_SUFFIXES = (".py", ".txt", ".md")
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "_bundled"}
SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo"}
_KEY = re.compile(r"\s+(tokens|rows|weight|fim|seed)=(\S+)$")
_SCALE = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHAREGPT |= {"tool": "tool", "observation": "tool", "function_call": "function_call"}


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
            raise OptionError(f"data source {text!r}: {error}.", "Write for example 'notes.jsonl tokens=2M'.") from None
        good = 0.0 <= source.fim <= 1.0 and (source.weight is None or 0 < source.weight < float("inf"))
        if not rest or not good or source.tokens == 0 or source.rows == 0:
            raise OptionError(f"data source {text!r} has a value out of range.", "fim is 0 to 1, the others above 0.")
        return source


@dataclass(frozen=True)
class Row:
    """One document. Exactly one of `messages`, `text`, `completion` is set; `place` says where it stands."""

    place: str
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    prompt: str = ""
    completion: str | None = None
    special: bool = False
    """Special tokens in prompt and completion are meant (generators only, never files)."""


def read_rows(source: Source) -> Iterator[Row | DataError]:
    """All rows of a source, endless for generators. Errors: DataError when the source itself is missing."""
    if source.name.startswith("synth:"):
        return _read_synth(source)
    if source.name == "stdlib":
        return _read_folder(Path(sysconfig.get_paths()["stdlib"]), source.seed, suffixes=(".py",), lenient=True)
    path = Path(source.name).expanduser()
    if path.is_dir():
        return _read_folder(path, source.seed, suffixes=TEXT_SUFFIXES, lenient=False)
    if not path.is_file():
        raise DataError(f"{source.name}: no such file or folder.", "Check the path, or use stdlib or synth:SKILL.")
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    if path.suffix in TEXT_SUFFIXES:
        return iter([_read_text(path)])
    raise DataError(f"{source.name}: unknown kind of file.", "Known: .jsonl, .py, .txt, .md, or a folder of them.")


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
        raise DataError(f"{source.name}: no such skill.", f"Known: all, {', '.join(sorted(TASKS))}.")
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
            yield Row(place, prompt=example.prompt or "", completion=example.completion or "", special=True)


# Text


def _list_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = []
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in SKIPPED_FOLDERS and not name.startswith("."))
        found += [Path(directory, name) for name in sorted(files) if name.endswith(suffixes)]
    return found


def _read_folder(folder: Path, seed: int, suffixes: tuple[str, ...], lenient: bool) -> Iterator[Row | DataError]:
    """Files in an order drawn from the seed, so that a budget takes a fair sample and not the letter A."""
    files = _list_folder(folder, suffixes)
    random.Random(f"folder/{seed}").shuffle(files)
    for file in files:
        row = _read_text(file)
        # The standard library has a few files in old encodings on purpose; they are no fault of the user.
        if not (lenient and isinstance(row, DataError)):
            yield row


def _read_text(path: Path) -> Row | DataError:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror}).", "Check its permissions.")
    except UnicodeDecodeError as error:
        return DataError(f"{path}: not UTF-8 at byte {error.start}.", "Convert it, or use on_bad_row: skip.")
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
        return DataError(f"{place}: not valid JSON ({error}).", "Fix the line, or use on_bad_row: skip.")


def parse_row(value: Any, place: str) -> Row:
    """A Row from one decoded JSON value, whichever of the known shapes it has. Errors: DataError with the place."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row must be a JSON object.", "See the training guide for the shapes.")
    tools = value.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError(f"{place}: tools must be a list of objects.", "Use OpenAI's tool format.")
    if "messages" in value:
        return Row(place, messages=check_messages(value["messages"], place), tools=tools)
    if "conversations" in value:
        return Row(place, messages=check_messages(_from_sharegpt(value, place), place), tools=tools)
    if "instruction" in value:
        return Row(place, messages=check_messages(_from_alpaca(value, place), place), tools=tools)
    if "completion" in value:
        prompt = _string(value, "prompt", place, default="")
        return Row(place, prompt=prompt, completion=_string(value, "completion", place))
    if "text" in value:
        return Row(place, text=_string(value, "text", place))
    known = "messages, conversations, instruction, prompt + completion, or text"
    raise DataError(f"{place}: no known shape among the keys {sorted(value)[:8]}.", f"Give {known}.")


def _string(value: dict[str, Any], key: str, place: str, default: str | None = None) -> str:
    text = value.get(key, default)
    if text is None and default is not None:
        text = default
    if not isinstance(text, str) or (default is None and not text):
        raise DataError(f"{place}: {key} must be a non-empty string.", "Fix the row, or use on_bad_row: skip.")
    return text


def _from_alpaca(value: dict[str, Any], place: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    history = value.get("history") or []
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError(f"{place}: history must be a list of [question, answer] pairs.", "Fix the row.")
    for question, answer in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question, extra = _string(value, "instruction", place), _string(value, "input", place, default="")
    messages.append({"role": "user", "content": f"{question}\n{extra}" if extra else question})
    messages.append({"role": "assistant", "content": _string(value, "output", place)})
    return messages


def _from_sharegpt(value: dict[str, Any], place: str) -> list[dict[str, Any]]:
    turns = value["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{place}: conversations must be a list of objects.", "Give from and value in each.")
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    for turn in turns:
        role = _SHAREGPT.get(str(turn.get("from", turn.get("role"))))
        content = turn.get("value", turn.get("content"))
        if role is None:
            raise DataError(f"{place}: unknown speaker {turn.get('from')!r}.", f"Known: {', '.join(_SHAREGPT)}.")
        if role == "function_call":
            call = {"function": json.loads(content if isinstance(content, str) else "null")}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        else:
            messages.append({"role": role, "content": content})
    return messages


def check_messages(messages: Any, place: str) -> list[dict[str, Any]]:
    """The conversation, checked: known roles in a sensible order and an assistant's turn to learn from.

    Tool-call arguments given as a JSON string (OpenAI's wire form) become objects, which templates expect.
    Errors: DataError naming the place and the message.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: messages must be a non-empty list.", "Fix the row, or use on_bad_row: skip.")
    previous, checked = "", []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        problem = _order_problem(str(role), previous, index)
        if problem is None and not isinstance(message.get("content") or "", str):
            problem = "content is not a string"
        calls = message.get("tool_calls") if problem is None else None
        if problem is None and role == "assistant" and not message.get("content") and not calls:
            problem = "the assistant says nothing and calls nothing"
        if problem is not None:
            raise DataError(f"{place}: messages[{index}]: {problem}.", "Fix the row, or use on_bad_row: skip.")
        clean = {**message, "content": message.get("content") or ""}
        if calls:
            clean["tool_calls"] = [_check_call(call, f"{place}: messages[{index}]") for call in calls]
        checked.append(clean)
        previous = str(role)
    if all(message["role"] != "assistant" for message in checked):
        raise DataError(f"{place}: no assistant message to learn from.", "Add the answer, or use on_bad_row: skip.")
    return checked


def _order_problem(role: str, previous: str, index: int) -> str | None:
    if role not in ("system", "user", "assistant", "tool"):
        return f"role {role!r} is not system, user, assistant or tool"
    if role == "system" and index > 0:
        return "a system message must come first"
    if role == previous and role != "tool":
        return f"two {role} messages in a row"
    if role == "assistant" and previous in ("", "system"):
        return "the assistant speaks before the user"
    if role == "tool" and previous not in ("assistant", "tool"):
        return "a tool message must follow the assistant's call"
    return None


def _check_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{place}: a tool call needs a function name.", "Use OpenAI's tool_calls format.")
    arguments = function.get("arguments", {})
    arguments = json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments
    if not isinstance(arguments, dict):
        raise DataError(f"{place}: the arguments of {function['name']} are not a JSON object.", "Fix the call.")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
