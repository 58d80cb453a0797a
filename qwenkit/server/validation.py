"""pydantic's complaints → one `ApiError` with the field's path and OpenAI's code."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from qwenkit.server.errors import ApiError

_BOUNDS = {
    "greater_than_equal": ("ge", "at least", "below_min_value"),
    "greater_than": ("gt", "above", "below_min_value"),
    "less_than_equal": ("le", "at most", "above_max_value"),
    "less_than": ("lt", "below", "above_max_value"),
}
_LENGTHS = {
    "string_too_long": ("max_length", "at most", "characters", "string_above_max_length"),
    "string_too_short": ("min_length", "at least", "characters", "string_below_min_length"),
    "too_long": ("max_length", "at most", "entries", "array_above_max_length"),
    "too_short": ("min_length", "at least", "entries", "empty_array"),
}
_TYPES = {
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "string_unicode": "a string of Unicode characters",
    "dict_attributes_type": "an object",
}


def explain(error: ValidationError, body: Any) -> ApiError:
    """The first complaint; of the branches of a union, that of the one that got furthest."""
    problems = error.errors(include_url=False)
    first = problems[0]
    same = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
    chosen = max(same, key=lambda p: (len(_path(p, body)), p["type"] not in _TYPES))
    path = _spell(_path(chosen, body))
    kind, context, value = chosen["type"], chosen.get("ctx", {}), chosen.get("input")
    if kind == "missing":
        text = f"Missing required parameter: '{path}'."
        return ApiError(400, text, param=path, code="missing_required_parameter")
    if kind == "extra_forbidden":
        text = f"Unknown parameter: '{path}'."
        return ApiError(400, text, param=path, code="unknown_parameter")
    if kind in _BOUNDS:
        name, words, code = _BOUNDS[kind]
        number = "integer" if isinstance(context[name], int) else "decimal"  # as declared
        text = f"Invalid '{path}': {number} out of range. Expected {words} {context[name]}."
        return ApiError(400, text, param=path, code=f"{number}_{code}")
    if kind in _LENGTHS:
        name, words, unit, code = _LENGTHS[kind]
        text = f"Invalid '{path}': it must have {words} {context[name]} {unit}."
        return ApiError(400, text, param=path, code=code)
    if kind in _TYPES:
        expected = _TYPES[kind]
        here = [p["type"] for p in same if _spell(_path(p, body)) == path]
        if all(each in _TYPES for each in here):
            expected = " or ".join(dict.fromkeys(_TYPES[each] for each in here))
        text = f"Invalid type for '{path}': expected {expected}, but got {_kind(value)} instead."
        return ApiError(400, text, param=path, code="invalid_type")
    if kind == "literal_error":
        text = f"Invalid value for '{path}'. Supported values are: {context['expected']}."
        return ApiError(400, text, param=path, code="invalid_value")
    reason = str(context.get("error", chosen["msg"]))
    return ApiError(400, f"Invalid '{path}': {reason}", param=path or None, code="invalid_value")


def _path(problem: Any, body: Any) -> list[str | int]:
    """The place in the body: the parts of `loc` that are keys there, not pydantic's own labels."""
    path: list[str | int] = []
    at = body
    *inner, last = problem["loc"] or ("",)
    for part in inner:
        if isinstance(at, dict) and part in at:
            at = at[part]
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            continue
        path.append(part)
    is_key = (isinstance(at, dict) and last in at) or (isinstance(at, list) and last != "")
    if problem["type"] == "missing" or (
        is_key and not (isinstance(at, list) and isinstance(last, str))
    ):
        path.append(last)
    return path


def _spell(path: list[str | int]) -> str:
    text = ""
    for part in path:
        text += (
            f"[{part}]" if isinstance(part, int) else f".{part:.100}" if text else f"{part:.100}"
        )
    return text


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string"}
    names |= {list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "something else")
