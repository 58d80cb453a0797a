"""Where values come from: flag > environment > YAML file > checkpoint's own defaults > default.

`resolve` merges the layers, remembers the origin of every value, and validates once. A YAML file is
either flat (the keys of one verb) or has one section per verb, so that one recipe serves several of
them. Relative paths in values are taken from the working directory. `write_resolved` writes the
outcome beside an output, in the same format, so that it can be read back as a file.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from qwenkit.errors import OptionError
from qwenkit.options.base import Options, T, check, env_name, suggest, unknown_name
from qwenkit.utils import write_text

MAX_FILE_BYTES = 4 << 20


def resolve(
    cls: type[T],
    flags: Mapping[str, Any] | None = None,
    *,
    file: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> T:
    """Merge all sources into one checked options object.

    Args:
        flags: snake_case name → value; text is read as the field's type.
        file: YAML file, flat or with a section named `cls.verb`.
        env: variables to look into, `os.environ` if None. An empty value counts as unset.
        checkpoint: a checkpoint's own defaults; names that the verb does not have are passed over.
    Errors: OptionError: unknown name (the nearest is suggested), wrong type or range, bad file.
    """
    names = cls.names()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(name: str, value: Any, origin: str) -> None:
        values[name], origins[name] = value, origin

    for key, value in (checkpoint or {}).items():
        if key in names and value is not None:
            put(names[key], value, "the checkpoint")
    if file is not None:
        seen: dict[str, str] = {}
        for key, value in read_section(cls, Path(file)).items():
            name = names.get(str(key).replace("-", "_"))
            if name is None:
                raise unknown_name(cls, str(key), str(file))
            if name in seen:
                raise OptionError(
                    f"{file}: {seen[name]} and {key} are the same option.", "Keep one of them."
                )
            seen[name] = str(key)
            single = isinstance(value, str) and list in _kinds(cls.model_fields[name].annotation)
            put(name, [value] if single else value, str(file))
    environment = os.environ if env is None else env
    for key, name in names.items():
        text = environment.get(env_name(key))
        if text:
            put(name, from_text(cls, name, text, env_name(key)), env_name(key))
    for key, value in (flags or {}).items():
        name = names.get(key.replace("-", "_"))
        if name is None:
            raise unknown_name(cls, key, "flag")
        origin = key if cls.flag(name).positional else "--" + cls.key(name).replace("_", "-")
        put(name, from_text(cls, name, value, origin), origin)
    return check(cls, values, origins)


def from_text(cls: type[Options], name: str, value: Any, origin: str) -> Any:
    """Read the text of a flag or variable as the type of field `name`; what is not text stays.

    A list field takes one item, or a YAML list in brackets; a mapping takes YAML or JSON in braces;
    `none` empties an optional field that is not text.
    """
    kinds = _kinds(cls.model_fields[name].annotation)
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return value
    if type(None) in kinds and str not in kinds and value.lower() in ("none", "null"):
        return None
    structured = (list in kinds and value.startswith("[")) or (
        dict in kinds and value.startswith("{")
    )
    if structured:
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            raise OptionError(
                f"{origin} is not valid YAML: {value[:60]!r}.", "Mind quotes and brackets."
            ) from None
    return [value] if list in kinds else value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation: `list[str] | None` → {list, NoneType}."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return {origin or annotation}


def read_section(cls: type[Options], file: Path) -> dict[str, Any]:
    """The keys of `cls` in a YAML file, flat or with a section per verb. Errors: OptionError."""
    document = _load(file)
    verbs = Options.verbs()
    found = [key for key in document if key in verbs and isinstance(document[key], dict)]
    if not found:
        return document
    sections = ", ".join(found)
    for key, value in document.items():
        if key not in found and value is not None:
            near = suggest(str(key), verbs)
            hint = f"the section {near}?" if near else "a key inside one of the sections?"
            raise OptionError(f"{file}: {key!r} is not a section like {sections}.", f"Is it {hint}")
    if cls.verb not in found:
        raise OptionError(
            f"{file} has no section {cls.verb!r}, only {sections}.", f"Add `{cls.verb}:`."
        )
    section: dict[str, Any] = document[cls.verb]
    return section


class _StrictLoader(yaml.SafeLoader):
    """YAML where a key that appears twice is an error and not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise OptionError(
                f"{file} is larger than {MAX_FILE_BYTES} bytes.", "It is not an options file."
            )
        document = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)  # a SafeLoader
    except OSError as error:
        raise OptionError(f"{file} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise OptionError(
            f"{place}: not valid YAML: {error.problem}.", "Mend that line."
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise OptionError(f"{file} is not valid YAML ({error}).", "Mend the file.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise OptionError(
            f"{file} must be a mapping of option names to values.", "Write `name: value` lines."
        )
    return document


def write_resolved(
    options: Options, directory: str | os.PathLike[str], name: str = "options.yaml"
) -> Path:
    """Write every option with its origin to `directory`/`name`, atomically; returns the path."""
    lines = [
        f"# Options of one run of the verb {options.verb!r}; behind each value, where it came from."
    ]
    for field in type(options).model_fields:
        key = options.key(field)
        text = yaml.safe_dump(
            {key: getattr(options, field)}, allow_unicode=True, width=float("inf"), sort_keys=False
        ).rstrip("\n")
        origin = " ".join(options.origin(field).split())
        lines += [f"{text}  # {origin}"] if "\n" not in text else [f"# {key}: {origin}", text]
    path = Path(directory) / name
    write_text(path, "\n".join(lines) + "\n")
    return path
