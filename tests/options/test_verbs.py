"""The options classes themselves: names, help, schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwenkit.errors import OptionError
from qwenkit.options import (
    VERBS,
    ChatOptions,
    Options,
    RunOptions,
    ServeOptions,
    env_name,
    flag_name,
    json_schema,
    resolve,
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_named_once_and_explained(verb: str) -> None:
    cls = VERBS[verb]
    names = [
        known for name in cls.model_fields for known in (cls.key(name), *cls.flag(name).aliases)
    ]
    assert len(names) == len(set(names)), "two options share a name"
    assert not any(name.startswith("no_") for name in names), "--no-X is the negation of --X"
    for name, field in cls.model_fields.items():
        assert field.description, f"{name} has no help"
        assert name.islower() and name.isidentifier()
    assert 10 < len(cls.summary()) <= 60, "fits a line of `qwenkit --help`"


def test_the_sections_of_a_file_are_the_verbs() -> None:
    assert Options.verbs() == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_schema_matches_the_class(verb: str) -> None:
    cls, schema = VERBS[verb], json_schema(verb)
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]) == [cls.key(name) for name in cls.model_fields]
    required = {cls.key(name) for name, field in cls.model_fields.items() if field.is_required()}
    assert set(schema.get("required", [])) == required


def test_schema_knows_ranges_and_variables() -> None:
    temperature = json_schema("run")["properties"]["temperature"]
    assert temperature["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 100}
    assert temperature["x-env"] == "QWENKIT_TEMPERATURE"
    assert json_schema("run")["properties"]["json"]["x-env"] == "QWENKIT_JSON"
    assert set(json_schema()["properties"]) == set(VERBS) - {"config-schema"}


def test_sampling_holds_only_what_is_set() -> None:
    assert resolve(RunOptions, {}, env={}).sampling() == {}
    given = resolve(RunOptions, {"temperature": "0", "stop": ["x"]}, env={})
    assert given.sampling() == {"temperature": 0.0, "stop": ["x"]}


def test_names() -> None:
    assert flag_name("max_tokens") == "--max-tokens"
    assert env_name("max_tokens") == "QWENKIT_MAX_TOKENS"


def test_adapters_have_names_and_folders() -> None:
    given = {"lora": ["sql=a/b=c", "fr=d"]}
    assert resolve(ServeOptions, given, env={}).adapters == {"sql": "a/b=c", "fr": "d"}
    assert resolve(RunOptions, {"lora": "a=b"}, env={}).adapters == {"lora": "a=b"}
    assert resolve(RunOptions, {"lora": "a"}, env={}).sampling() == {"adapter": "lora"}
    assert resolve(ChatOptions, {}, env={}).adapters == {}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lora": ["sql"]}, "NAME=FOLDER"),
        ({"lora": ["sql="]}, "NAME=FOLDER"),
        ({"lora": ["=a"]}, "NAME=FOLDER"),
        ({"lora": ["a=b", "a=c"]}, "The name 'a' is given twice"),
        ({"lora": ["tiny-instruct=b"]}, "The name 'tiny-instruct' is given twice"),
        ({"lora": ["a=b"], "served_model_name": ["a"]}, "The name 'a' is given twice"),
        ({"lora": ["a=b", "c=d"], "max_loras": "1"}, "more than 1 entries"),
        ({"served_model_name": ["a", ""]}, "must be 1 to 256 printable"),
        ({"served_model_name": ["a\nb"]}, "must be 1 to 256 printable"),
        ({"allowed_origin": ["https://a.example/x"]}, "no path"),
        ({"allowed_origin": ["https://:::"]}, "no path"),
        ({"allowed_origin": ["a.example"]}, "no path"),
    ],
)
def test_names_that_cannot_be(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        resolve(ServeOptions, flags, env={})


def test_origins_are_read_as_browsers_write_them() -> None:
    given = ["https://App.Example:443", "http://[::1]:3000", "http://a:80", "*"]
    options = resolve(ServeOptions, {"allowed_origin": given}, env={})
    assert options.allowed_origin == ["https://app.example", "http://[::1]:3000", "http://a", "*"]
