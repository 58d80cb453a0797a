"""The type check of values that were read from JSON."""

from __future__ import annotations

from typing import Any

from qwenkit.errors import ConfigError


def typed(key: str, value: Any, kind: str, source: str) -> Any:
    """Check a JSON value against an annotation like `int`, `float`, `int | None`."""
    allowed: tuple[type, ...] = ()
    for name, types in (
        ("int", (int,)),
        ("float", (int, float)),
        ("bool", (bool,)),
        ("str", (str,)),
    ):
        if name in kind.split("[")[0].replace("|", " ").split():
            allowed += types
    if "list" in kind:
        allowed += (list,)
    if "dict" in kind:
        allowed += (dict,)
    wrong_bool = isinstance(value, bool) and bool not in allowed
    if not isinstance(value, allowed) or wrong_bool:
        raise ConfigError(
            f"{source}: {key} is {value!r}; expected {_spelt(kind)}.", "Mend or re-fetch the file."
        )
    if kind != "float" or not isinstance(value, int):
        return value
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{source}: {key} is too large.", "Mend or re-fetch the file.") from None


def _spelt(kind: str) -> str:
    """An annotation in JSON's words."""
    words = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a string"}
    words |= {"list": "a list", "dict": "an object", "None": "null"}
    return " or ".join(words[part.split("[")[0].strip()] for part in kind.split(" | "))
