"""One training row out of one JSON value, in any of the common shapes.

Known shapes: OpenAI `messages` (with `tools`), ShareGPT `conversations`, Alpaca `instruction`,
`prompt` + `completion`, and plain `text`. Conversations are checked here, so that a broken row is
an error with its file and line and never an empty loss mask. Not covered: images in messages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwenkit.errors import DataError

_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SHAREGPT |= {"tool": "tool", "observation": "tool", "function_call": "function_call"}


@dataclass(frozen=True)
class Row:
    """One document. Exactly one of `messages`, `text`, `completion` is set; `place` says where it
    stands.
    """

    place: str
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    prompt: str = ""
    completion: str | None = None
    special: bool = False
    """Special tokens in prompt and completion are meant (generators only, never files)."""


def parse_row(value: Any, place: str) -> Row:
    """A Row from one decoded JSON value, whichever of the known shapes it has. Errors: DataError
    with the place.
    """
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: a row must be a JSON object.", "See the training guide for the shapes."
        )
    tools = value.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
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
    raise DataError(
        f"{place}: no known shape among the keys {sorted(value)[:8]}.", f"Give {known}."
    )


def _string(value: dict[str, Any], key: str, place: str, default: str | None = None) -> str:
    text = value.get(key, default)
    if text is None and default is not None:
        text = default
    if not isinstance(text, str) or (default is None and not text):
        raise DataError(
            f"{place}: {key} must be a non-empty string.", "Fix the row, or use on_bad_row: skip."
        )
    return text


def _from_alpaca(value: dict[str, Any], place: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    history = value.get("history") or []
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError(
            f"{place}: history must be a list of [question, answer] pairs.", "Fix the row."
        )
    for question, answer in history:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    question, extra = (
        _string(value, "instruction", place),
        _string(value, "input", place, default=""),
    )
    messages.append({"role": "user", "content": f"{question}\n{extra}" if extra else question})
    messages.append({"role": "assistant", "content": _string(value, "output", place)})
    return messages


def _from_sharegpt(value: dict[str, Any], place: str) -> list[dict[str, Any]]:
    turns = value["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(
            f"{place}: conversations must be a list of objects.", "Give from and value in each."
        )
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    for turn in turns:
        role = _SHAREGPT.get(str(turn.get("from", turn.get("role"))))
        content = turn.get("value", turn.get("content"))
        if role is None:
            raise DataError(
                f"{place}: unknown speaker {turn.get('from')!r}.", f"Known: {', '.join(_SHAREGPT)}."
            )
        if role == "function_call":
            call = {"function": json.loads(content if isinstance(content, str) else "null")}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        else:
            messages.append({"role": role, "content": content})
    return messages


def check_messages(messages: Any, place: str) -> list[dict[str, Any]]:
    """The conversation, checked: known roles in a sensible order and an assistant's turn to learn
    from.

    Tool-call arguments given as a JSON string (OpenAI's wire form) become objects, which templates
    expect.
    Errors: DataError naming the place and the message.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"{place}: messages must be a non-empty list.", "Fix the row, or use on_bad_row: skip."
        )
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
            raise DataError(
                f"{place}: messages[{index}]: {problem}.", "Fix the row, or use on_bad_row: skip."
            )
        clean = {**message, "content": message.get("content") or ""}
        if calls:
            clean["tool_calls"] = [
                _check_call(call, f"{place}: messages[{index}]") for call in calls
            ]
        checked.append(clean)
        previous = str(role)
    if all(message["role"] != "assistant" for message in checked):
        raise DataError(
            f"{place}: no assistant message to learn from.",
            "Add the answer, or use on_bad_row: skip.",
        )
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
        raise DataError(
            f"{place}: a tool call needs a function name.", "Use OpenAI's tool_calls format."
        )
    arguments = function.get("arguments", {})
    arguments = (
        json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments
    )
    if not isinstance(arguments, dict):
        raise DataError(
            f"{place}: the arguments of {function['name']} are not a JSON object.", "Fix the call."
        )
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
