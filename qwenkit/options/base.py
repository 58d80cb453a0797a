"""What an option is: one field of one class is flag, variable, YAML key and JSON schema.

Each verb has one flat class derived from `Options`. A field is declared once with `opt(default,
help, …)`; its name is the YAML key, `--kebab-case` of it the flag, `QWENKIT_UPPER_CASE` the
environment variable. Validation is pydantic's; `check` turns its first complaint into one line that
says where the value came from. Where values come from and which one wins is in `resolve.py`.

pydantic costs 0.1 s of `qwenkit --help`. cyclopts on top would cost another 0.15 s and leave
nothing of the 0.3 s, so the flags are handed to argparse (0.02 s) by `qwenkit.cli.flags`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from qwenkit.errors import OptionError

T = TypeVar("T", bound="Options")
ENV_PREFIX = "QWENKIT_"
DEFAULT = "default"


@dataclass(frozen=True)
class Flag:
    """How a field looks on the command line, beyond its name."""

    short: str | None = None
    aliases: tuple[str, ...] = ()
    """Other names of the same option, in snake_case; good as flags and as YAML keys."""
    positional: bool = False
    metavar: str | None = None
    group: str = "options"


def opt(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    aliases: Iterable[str] = (),
    positional: bool = False,
    metavar: str | None = None,
    group: str = "options",
    **constraints: Any,
) -> Any:
    """Declare an option.

    `default` is ... for a required one; `constraints` are pydantic's (ge, gt, le, lt, alias).
    """
    field: FieldInfo = Field(default, description=help, **constraints)
    field.metadata.append(Flag(short, tuple(aliases), positional, metavar, group))
    return field


class Options(BaseModel):
    """Base of the options of one verb: frozen, flat, unknown names refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        defer_build=True,
        populate_by_name=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        validate_default=False,
    )
    verb: ClassVar[str]
    """The verb, and the name of its section in a YAML file that serves several verbs."""
    group: ClassVar[str] = ""
    """The word before the verb on the command line, if there is one: `train` before `sft`."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def summary(cls) -> str:
        """One line of help: the first line of the class's docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def flag(cls, name: str) -> Flag:
        """The command-line side of field `name`."""
        found = (item for item in cls.model_fields[name].metadata if isinstance(item, Flag))
        return next(found, Flag())

    @classmethod
    def key(cls, name: str) -> str:
        """The public name of field `name` (`as_json` is known as `json`)."""
        return cls.model_fields[name].alias or name

    @classmethod
    def names(cls) -> dict[str, str]:
        """Every accepted snake_case name, aliases included → field name."""
        table = {}
        for name in cls.model_fields:
            for known in (cls.key(name), *cls.flag(name).aliases):
                table[known] = name
        return table

    @classmethod
    def verbs(cls) -> set[str]:
        """Every verb that a subclass serves: the sections that a YAML file may have."""
        own = {cls.verb} if "verb" in cls.__dict__ else set()
        return own.union(*(child.verbs() for child in cls.__subclasses__()))

    def origin(self, name: str) -> str:
        """Where the value of field `name` came from: a flag, a variable, a file, or "default"."""
        return self._origins.get(name, DEFAULT)

    def replace(self: T, values: Mapping[str, Any], origin: str) -> T:
        """A checked copy with some fields set, their origin noted."""
        current = {name: getattr(self, name) for name in type(self).model_fields}
        origins = {**self._origins, **dict.fromkeys(values, origin)}
        return check(type(self), {**current, **values}, origins)

    def with_defaults(self: T, values: Mapping[str, Any], origin: str) -> T:
        """A copy where the checkpoint's own `values` fill the fields that nobody has set."""
        unset = {
            name: value
            for name, value in values.items()
            if name in type(self).model_fields and name not in self._origins and value is not None
        }
        return self.replace(unset, origin)

    def to_dict(self) -> dict[str, Any]:
        """Public name → value, in the order of declaration."""
        return {self.key(name): getattr(self, name) for name in type(self).model_fields}

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (2020-12) of the verb's YAML section, aliases left out."""
        schema = cls.model_json_schema(by_alias=True)
        schema["title"] = f"qwenkit {cls.verb}"
        schema["description"] = cls.summary()
        for name, spec in schema["properties"].items():
            spec.pop("title", None)
            spec["x-env"] = env_name(name)
        return schema


def flag_name(name: str) -> str:
    """max_tokens → --max-tokens."""
    return "--" + name.replace("_", "-")


def env_name(name: str) -> str:
    """max_tokens → QWENKIT_MAX_TOKENS."""
    return ENV_PREFIX + name.upper()


def suggest(wanted: str, known: Iterable[str]) -> str | None:
    """The nearest known name, if one is near."""
    near = difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def check(cls: type[T], values: Mapping[str, Any], origins: Mapping[str, str]) -> T:
    """Validate field values.

    Errors: OptionError, one line with key, value, origin and what is allowed.
    """
    try:
        options = cls.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(cls, error, origins) from None
    options._origins = dict(origins)
    return options


_EXPECTED = {
    "int_parsing": "an integer",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "int_parsing_size": "an integer of at most 64 bits",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def _explain(cls: type[Options], error: ValidationError, origins: Mapping[str, str]) -> OptionError:
    first = error.errors(include_url=False)[0]
    loc = first["loc"]
    by_key = {cls.key(name): name for name in cls.model_fields}
    if not loc:  # a validator over several fields
        return OptionError(str(first["ctx"]["error"]), _see_help(cls))
    key = str(loc[0])
    name = by_key.get(key, key)
    key = cls.key(name)
    if first["type"] == "missing":
        ways = f"Give {_call_sign(cls, name)}, or `{key}:` in a YAML file."
        return OptionError(f"`qwenkit {_spoken(cls)}` needs {key}.", ways)
    if first["type"] == "extra_forbidden":
        return unknown_name(cls, key, "code")
    value = first["input"]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "…"
    place = "".join(f"[{part}]" for part in loc[1:] if isinstance(part, int))
    origin = origins.get(name, "code")
    problem = f"{key}{place} is {shown} (from {origin}); it must be {_expected(first)}."
    return OptionError(problem, _see_help(cls))


def _expected(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{words} {context[bound]:g}"
    if kind == "literal_error":
        return "one of " + str(context["expected"]).replace("'", "").replace(" or ", ", ")
    if kind == "value_error":
        return str(context["error"])
    text: str = problem["msg"]
    return _EXPECTED.get(kind, text[:1].lower() + text[1:])


def _spoken(cls: type[Options]) -> str:
    return f"{cls.group} {cls.verb}".strip()


def _see_help(cls: type[Options]) -> str:
    return f"See `qwenkit {_spoken(cls)} --help`."


def _call_sign(cls: type[Options], name: str) -> str:
    flag = cls.flag(name)
    return flag.metavar or name.upper() if flag.positional else flag_name(cls.key(name))


def unknown_name(cls: type[Options], name: str, origin: str) -> OptionError:
    """The error for an option that does not exist, with the nearest one that does."""
    near = suggest(name.replace("-", "_"), cls.names())
    hint = f"Did you mean {near}?" if near else _see_help(cls)
    return OptionError(f"{origin}: unknown option {name!r} for `qwenkit {_spoken(cls)}`.", hint)
