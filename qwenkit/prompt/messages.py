"""Checks a conversation and its tools; makes plain JSON values of them that a template may see.

Contract: `check_messages` and `check_tools` return fresh values of exact types (str, int, float,
bool, None, list, dict), or raise a RequestError whose `param` is the path of the offending part
(`messages[2].tool_calls[0].function`). What they settle:

- content: a string; a list of text parts is joined; None becomes "" where an assistant message has
  tool calls;
- tool calls: OpenAI's nested and the flat form become the nested one; arguments given as the JSON
  text of an object become that object (templates serialise them again); text that is no JSON object
  stays a string;
- a `tool_call_id` must be the id of a call made before;
- lone surrogates become U+FFFD; all other text, and unknown keys of messages, pass through.

Not covered: images and videos (a text model refuses them here); whether the order of the roles
suits the template, which says so itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwenkit.errors import RequestError
from qwenkit.prompt.json_scan import CALL_NAME, parse_object
from qwenkit.prompt.tokenizer import replace_surrogates

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_DEPTH = 64
MAX_INT_BITS = 4096
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Validate a conversation. Errors: RequestError naming the part, as `messages[1].role`."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise _bad("messages", "must be a list of messages")
    if not messages:
        raise _bad("messages", "is empty", "Give at least one message.")
    if len(messages) > MAX_MESSAGES:
        raise _bad("messages", f"has {len(messages)} entries; at most {MAX_MESSAGES} are taken")
    call_ids: set[str] = set()
    return [_check_message(m, f"messages[{i}]", call_ids) for i, m in enumerate(messages)]


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Validate the offered tools; an empty list is None. Errors: RequestError naming the part.

    The entries keep their form and key order, because templates print them as they are.
    """
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes)):
        raise _bad("tools", "must be a list of function descriptions")
    if len(tools) > MAX_TOOLS:
        raise _bad("tools", f"has {len(tools)} entries; at most {MAX_TOOLS} are taken")
    checked, seen = [], set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        entry = _mapping(tool, where)
        inner = entry.get("function", entry)
        path = f"{where}.function" if "function" in entry else where
        if not isinstance(inner, dict):
            raise _bad(path, "must be an object")
        name = inner.get("name")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            raise _bad(f"{path}.name", "must be 1 to 64 letters, digits, '_', '-' or '.'")
        if name in seen:
            raise _bad(f"{path}.name", f"repeats {name!r}", "Give each tool its own name.")
        seen.add(name)
        if not isinstance(inner.get("parameters", {}), dict):
            raise _bad(f"{path}.parameters", "must be a JSON schema object")
        checked.append(entry)
    return checked or None


def tool_names(tools: Sequence[Mapping[str, Any]] | None) -> tuple[str, ...]:
    """Names of checked tools, for `ToolCallParser`."""
    return tuple(tool.get("function", tool)["name"] for tool in tools or ())


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Copy a JSON-like value into exact built-in types. Errors: RequestError naming the path."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return replace_surrogates(str.__str__(value))
    if isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise _bad(where, "is too large a number")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _bad(where, f"is {value}, which JSON cannot express")
        return float(value)
    if depth == MAX_DEPTH:
        raise _bad(where, f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _bad(where, f"has the key {key!r:.40}, which is no string")
            key = replace_surrogates(str.__str__(key))
            copy[key] = plain(item, f"{where}.{key:.40}", depth + 1)
        return copy
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise _bad(where, f"has the type {type(value).__name__}, which JSON cannot express")


def _bad(where: str, what: str, remedy: str | None = None) -> RequestError:
    return RequestError(f"{where} {what}.", remedy, param=where)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _bad(where, "must be an object")
    copy: dict[str, Any] = plain(value, where)
    return copy


def _check_message(message: Any, where: str, call_ids: set[str]) -> dict[str, Any]:
    checked = _mapping(message, where)
    role = checked.get("role")
    if role not in ROLES:
        problem = "is missing" if role is None else f"is {role!r:.40}"
        raise _bad(f"{where}.role", problem, f"Use one of {', '.join(ROLES)}.")
    calls = checked.pop("tool_calls", None)
    if calls is not None:
        if role != "assistant":
            raise _bad(f"{where}.tool_calls", f"is not for the role {role}")
        if not isinstance(calls, list):
            raise _bad(f"{where}.tool_calls", "must be a list")
        if calls:
            checked["tool_calls"] = [
                _check_call(call, f"{where}.tool_calls[{i}]", call_ids)
                for i, call in enumerate(calls)
            ]
    checked["content"] = _check_content(checked, where)
    if (
        role == "tool"
        and checked.get("tool_call_id") is not None
        and checked["tool_call_id"] not in call_ids
    ):
        raise _bad(f"{where}.tool_call_id", "is not the id of a tool call made before")
    return checked


def _check_content(message: dict[str, Any], where: str) -> str:
    content, path = message.get("content"), f"{where}.content"
    if content is None:
        if message.get("tool_calls"):
            return ""
        raise _bad(path, "is missing", "Give the text of the message.")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _bad(path, "must be a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        kind = (
            part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else None
        )
        if kind != "text":
            what = f"is of the type {kind!r:.40}" if kind else "has no type"
            raise _bad(
                f"{path}[{index}]",
                f"{what}; this model reads text only",
                "Send parts of the type text.",
            )
        if not isinstance(part.get("text"), str):
            raise _bad(f"{path}[{index}].text", "must be a string")
        texts.append(part["text"])
    return "".join(texts)


def _check_call(call: Any, where: str, call_ids: set[str]) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise _bad(where, "must be an object")
    path = f"{where}.function" if "function" in call else where
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise _bad(path, "must be an object")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not CALL_NAME.fullmatch(name):
        raise _bad(f"{path}.name", "must be a name without spaces, quotes, brackets or braces")
    if isinstance(arguments, str):
        arguments = _parse_arguments(arguments, f"{path}.arguments")
    elif not isinstance(arguments, dict):
        raise _bad(f"{path}.arguments", "must be an object or the JSON text of one")
    checked = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        if not isinstance(call["id"], str):
            raise _bad(f"{where}.id", "must be a string")
        call_ids.add(call["id"])
        checked["id"] = call["id"]
    return checked


def _parse_arguments(text: str, where: str) -> dict[str, Any] | str:
    """The object that the text spells; broken JSON stays text, so history can be sent back."""
    if not text.strip():
        return {}
    value = parse_object(text)
    if value is None:
        return text
    checked: dict[str, Any] = plain(value, where)
    return checked


def canonical(value: Any) -> str:
    """All the strings of a plain value in one text (JSON, unescaped non-ASCII)."""
    return json.dumps(value, ensure_ascii=False)
