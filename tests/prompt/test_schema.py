"""Which schemas are taken, and the place that an error names."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.errors import RequestError
from qwenkit.prompt.schema import MAX_DEPTH, check_schema


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def names(count: int) -> dict[str, Any]:
    return {f"p{i}": {} for i in range(count)}


def test_only_what_restricts_stays() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:x",
        "title": "t",
        "type": "object",
        "properties": {"a": {"type": "string", "description": "d", "default": "x", "maxLength": 3}},
    }
    kept = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}
    assert check_schema(schema) == kept
    assert check_schema(True) is True


def test_limits() -> None:
    assert check_schema(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    with pytest.raises(RequestError, match="deeper than 10 levels"):
        check_schema(nested(MAX_DEPTH + 1))
    many = {"type": "object", "properties": names(5000), "required": list(names(5000))}
    assert check_schema(many) == many
    with pytest.raises(RequestError, match="over 5000 properties"):
        check_schema({"type": "object", "properties": names(5001), "required": list(names(5001))})
    with pytest.raises(RequestError, match="over 250 optional"):
        check_schema({"type": "object", "properties": names(251)})
    half = {"enum": list(range(501))}
    with pytest.raises(RequestError, match="over 1000 values of enum"):
        check_schema({"anyOf": [half, half]})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "#/type"),
        ({"type": []}, "#/type"),
        ({"properties": {"a/b": {"type": 3}}}, "#/properties/a~1b/type"),
        ({"properties": []}, "#/properties"),
        ({"items": [{}]}, "prefixItems"),
        ({"anyOf": []}, "#/anyOf"),
        ({"allOf": {}}, "#/allOf"),
        ({"enum": []}, "#/enum"),
        ({"required": "a"}, "#/required"),
        ({"minLength": -1}, "#/minLength"),
        ({"minLength": 1.5}, "#/minLength"),
        ({"minItems": 10**9}, "#/minItems"),
        ({"maxItems": 10**10}, "#/maxItems"),
        ({"minimum": "3"}, "#/minimum"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"multipleOf": -2}, "#/multipleOf"),
        ({"multipleOf": 99991}, "#/multipleOf"),
        ({"multipleOf": 1e-300, "type": "number"}, "ok"),
        ({"pattern": 3}, "#/pattern"),
        ({"format": "credit-card"}, "credit-card"),
        ({"uniqueItems": True}, "uniqueItems"),
        ({"not": {}}, "'not'"),
        ({"if": {}}, "'if'"),
        ({"nullable": True}, '"null"'),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"dependentRequired": {}}, "dependentRequired"),
        ({"$ref": "http://127.0.0.1/x"}, "Nothing is fetched"),
        ({"$ref": "other.json"}, "Nothing is fetched"),
        ({"$ref": "#/$defs/missing"}, "no schema"),
        ({"$ref": "#/title", "title": "x"}, "no schema"),
        ({"$ref": 3}, "#/$ref"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "#/$schema"),
        ({"items": {"$id": "x"}}, "$id"),
        ({"minProperties": 2}, "#/minProperties"),
        ({"items": 3}, "#/items"),
    ],
)
def test_the_error_names_the_place(schema: dict[str, Any], words: str) -> None:
    if words == "ok":
        assert check_schema(schema) == schema
        return
    with pytest.raises(RequestError) as error:
        check_schema(schema)
    assert words in str(error.value)


def test_what_cannot_be_enforced_is_left_out_only_when_told_so() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"format": "x", "type": "string"}}
    kept = {"type": "array", "items": {"type": "string"}}
    assert check_schema(schema, strict=False) == kept


LOOP = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        LOOP,
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
        {"anyOf": [{"$ref": "#"}, False]},
        {"allOf": [{"type": "string"}, {"$ref": "#"}]},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}},
    ],
)
def test_what_never_ends_is_refused(schema: Any) -> None:
    with pytest.raises(RequestError, match="No finite answer"):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "null"}, LOOP]},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"enum": [1]}}},
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {
                    "type": "object",
                    "properties": {"b": {"$ref": "#/$defs/b"}},
                    "required": ["b"],
                },
                "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]},
            },
        },
    ],
)
def test_recursion_with_an_end_is_fine(schema: Any) -> None:
    assert check_schema(schema)


def test_references_become_ascii() -> None:
    checked = check_schema({"$ref": "#/$defs/ünï~1x", "$defs": {"ünï/x": {"type": "null"}}})
    assert isinstance(checked, dict) and checked["$ref"] == "#/$defs/%C3%BCn%C3%AF~1x"
