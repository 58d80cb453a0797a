"""What an answer must look like, as the caller says it: `Constraint`.

Contract: `constraint_of` reads `response_format`, `regex`, `choice`, `grammar`, and the tools with
`tool_choice` and `parallel_tool_calls`. It checks types and sizes only, in time bounded by the
limits below, so that it may run where others wait; whether the grammar is sound is found out by
`qwenkit.prompt.grammar`, in a process of its own. A `Constraint` is a JSON text, which is also the
key under which its compiled grammar is kept.

Precedence where several things are asked for at once:

- `tool_choice` "required", or a tool's name: the answer is tool calls, and `response_format` (or
  `regex`, `choice`, `grammar`) has nothing to say;
- tools with "auto": the answer is either tool calls or what `response_format` asks for. Without one
  it is free text, perhaps followed by calls; that is held to a grammar only if a tool is `strict`
  or `parallel_tool_calls` is false;
- "none": tools are left out.

Not covered: images; grammars of other libraries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.errors import RequestError
from qwenkit.prompt.messages import check_tools

MAX_BYTES = 1 << 16
"""Of one schema, regex or grammar, and of all choices together, written as JSON."""
MAX_SPEC = 1 << 18
"""Characters of all schemas of a request."""
MAX_LEVELS = 64
"""Of nested JSON in a schema; the depth of the schema itself has a lower limit in `schema.py`."""
MAX_CHOICES = 1000
MAX_CALLS = 16
"""Tool calls of one answer, where a grammar holds them."""
MAX_NUMBER = 1e30

Tools = Sequence[Mapping[str, Any]]
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Constraint:
    """`spec` is JSON: {"body": …, "calls": …}, either may be null; `param` is whom to blame."""

    spec: str
    param: str


def constraint_of(
    *,
    response_format: Any = None,
    regex: Any = None,
    choice: Any = None,
    grammar: Any = None,
    tools: Tools | None = None,
    tool_choice: Any = None,
    parallel_tool_calls: Any = None,
) -> Constraint | None:
    """The constraint of one request; None when the answer is free.

    response_format: {"type": "text" | "json_object"}, or {"type": "json_schema", "json_schema":
        {"schema": …, "name": …, "strict": …}}. A keyword that is not supported is refused; only
        `"strict": false` leaves it out.
    regex: Rust's syntax, matched against the whole answer. choice: up to 1,000 texts, one of which
        is the answer. grammar: in llguidance's variant of Lark, or in GBNF (`root ::= …`).
    tool_choice: "none", "auto", "required", or {"type": "function", "function": {"name": …}}.
    parallel_tool_calls: false allows one call, else up to 16.

    Errors: RequestError naming the parameter.
    """
    body, param = _body(response_format, regex, choice, grammar)
    calls, must = _calls(tools, tool_choice, parallel_tool_calls)
    if calls is not None and must:
        body, param = None, "tool_choice"
    elif calls is not None and body is None:
        if calls["many"] and not any(tool["strict"] for tool in calls["tools"]):
            return None
        body, param = {"kind": "text"}, "tools"
    if body is None and calls is None:
        return None
    spec = json.dumps({"body": body, "calls": calls}, ensure_ascii=False, separators=(",", ":"))
    if len(spec) > MAX_SPEC:
        raise RequestError("The schemas of all tools together are too large.", param="tools")
    return Constraint(spec, param)


def checked_tool_choice(tool_choice: Any, names: Sequence[str]) -> str | None:
    """None for "auto" and absence, "none", "required", or "=" and a tool's name.

    Errors: RequestError when it is none of these, or names a tool that is not offered.
    """
    if tool_choice in (None, "auto"):
        return None
    if tool_choice == "none":
        return "none"
    if tool_choice == "required":
        if not names:
            raise RequestError(
                'tool_choice is "required", but there are no tools.',
                "Give tools, or leave tool_choice out.",
                param="tool_choice",
            )
        return "required"
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or tool_choice.get("type", "function") != "function":
        raise RequestError(
            'tool_choice must be "none", "auto", "required" or '
            '{"type": "function", "function": {"name": …}}.',
            param="tool_choice",
        )
    if name not in names:
        raise RequestError(
            f"tool_choice names {name!r:.80}, which is not among the tools.",
            "Name a tool that is offered.",
            param="tool_choice",
        )
    return f"={name}"


def _body(
    response_format: Any, regex: Any, choice: Any, grammar: Any
) -> tuple[dict[str, Any] | None, str]:
    asked = {
        "response_format": response_format,
        "regex": regex,
        "choice": choice,
        "grammar": grammar,
    }
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise RequestError(
            f"{given[0]} and {given[1]} go against each other.", "Give one.", param=given[1]
        )
    if regex is not None:
        return {"kind": "regex", "pattern": _text(regex, "regex")}, "regex"
    if grammar is not None:
        return {"kind": "lark", "text": _text(grammar, "grammar")}, "grammar"
    if choice is not None:
        return {"kind": "choice", "texts": _choices(choice)}, "choice"
    return _format(response_format), "response_format"


def _format(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"kind": "json_object"}
    if kind != "json_schema":
        raise RequestError(
            'response_format must be {"type": "text"}, {"type": "json_object"} or '
            '{"type": "json_schema", "json_schema": {"schema": …}}.',
            param="response_format",
        )
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), (Mapping, bool)):
        raise RequestError(
            "response_format.json_schema.schema is missing or no JSON schema.",
            'Give {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}.',
            param="response_format",
        )
    strict = inner.get("strict")
    if strict not in (None, True, False):
        raise RequestError("strict must be true or false.", param="response_format")
    schema = inner["schema"]
    measure(schema, "The schema", "response_format")
    return {"kind": "json_schema", "schema": schema, "strict": strict is not False}


def _choices(choice: Any) -> list[str]:
    listed = isinstance(choice, Sequence) and not isinstance(choice, (str, bytes))
    if not listed or not 1 <= len(choice) <= MAX_CHOICES:
        raise RequestError(f"choice must be a list of 1 to {MAX_CHOICES} texts.", param="choice")
    if not all(isinstance(text, str) and text for text in choice):
        raise RequestError("Every choice must be a text and not empty.", param="choice")
    texts = list(dict.fromkeys(choice))
    measure(texts, "The choices", "choice")
    return texts


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name} must be a text and not empty.", param=name)
    measure(value, f"The {name}", name)
    return value


def _calls(
    tools: Tools | None, tool_choice: Any, parallel: Any
) -> tuple[dict[str, Any] | None, bool]:
    """The calls that may be made, and whether one must be."""
    if parallel not in (None, True, False):
        raise RequestError(
            "parallel_tool_calls must be true or false.", param="parallel_tool_calls"
        )
    functions = [tool.get("function", tool) for tool in check_tools(tools) or ()]
    chosen = checked_tool_choice(tool_choice, [function["name"] for function in functions])
    if not functions or chosen == "none":
        return None, False
    if chosen is not None and chosen.startswith("="):
        functions = [each for each in functions if each["name"] == chosen[1:]]
    entries = []
    for function in functions:
        name, parameters = function["name"], function.get("parameters", {})
        strict = function.get("strict") or False
        if not isinstance(strict, bool):
            raise RequestError(f"strict of the tool {name} must be true or false.", param="tools")
        measure(parameters, f"The schema of the tool {name}", "tools")
        entries.append({"name": name, "parameters": parameters, "strict": strict})
    one_only = parallel is False or (chosen or "").startswith("=")
    return {"tools": entries, "many": not one_only}, chosen is not None


def measure(value: Any, what: str, param: str) -> None:
    """Refuse what is not JSON, nested too deeply, or over 64 KiB, without looking at the rest.

    Errors: RequestError.
    """
    left, pending = MAX_BYTES, [(value, 1)]
    while pending:
        node, level = pending.pop()
        if isinstance(node, str):
            if _SURROGATE.search(node):
                raise RequestError(f"{what} has a lone surrogate, which is no text.", param=param)
            left -= len(node) if node.isascii() else len(node.encode())
        elif isinstance(node, (int, float)) and not isinstance(node, bool):
            if not -MAX_NUMBER <= node <= MAX_NUMBER:  # false for NaN too
                raise RequestError(
                    f"{what} has a number that is not finite or over {MAX_NUMBER:g}.", param=param
                )
            left -= 8
        elif isinstance(node, Mapping):
            if not all(isinstance(key, str) for key in node):
                raise RequestError(f"{what} has a key that is no text.", param=param)
            left -= 4 * len(node)
            pending += [(key, level) for key in node] if left >= 0 else []
            pending += [(each, level + 1) for each in node.values()] if left >= 0 else []
        elif isinstance(node, (list, tuple)):
            left -= 2 * len(node)
            pending += [(each, level + 1) for each in node] if left >= 0 else []
        elif node is not None and not isinstance(node, bool):
            raise RequestError(f"{what} has a value that is no JSON.", param=param)
        if left < 0:
            raise RequestError(
                f"{what} takes over {MAX_BYTES // 1024} KiB.", "Make it smaller.", param=param
            )
        if level > MAX_LEVELS:
            raise RequestError(
                f"{what} is nested over {MAX_LEVELS} levels.", "Make it flatter.", param=param
            )
