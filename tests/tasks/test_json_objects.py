from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from qwenkit.errors import FormatError
from qwenkit.tasks.base import LANGUAGES, Example, examples
from qwenkit.tasks.synth.json_objects import FIELDS, JsonObject, parse_object, same_json

TASK = JsonObject()
TYPES = {"string": str, "integer": int, "boolean": bool}


def draw(lang: str, count: int = 2000, *, held_out: bool = False) -> list[Example]:
    return list(islice(examples(TASK, lang, 11, held_out=held_out), count))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_gold_object_follows_its_schema_and_its_sentence(lang: str) -> None:
    sizes: Counter[int] = Counter()
    keys: set[str] = set()
    booleans: Counter[bool] = Counter()
    for example in draw(lang):
        assert example.messages is not None
        question, gold = example.messages[0]["content"], json.loads(example.messages[1]["content"])
        schema, text = example.meta["schema"], example.meta["text"]
        assert json.dumps(schema, ensure_ascii=False) in question and text in question
        assert list(gold) == list(schema["properties"])
        assert schema.get("required", list(gold)) == list(gold)
        for key, value in gold.items():
            assert type(value) is TYPES[schema["properties"][key]["type"]]
            if isinstance(value, bool):
                booleans[value] += 1
            else:
                assert str(value) in text
        sizes[len(gold)] += 1
        keys.update(gold)
    assert set(sizes) == {2, 3, 4} and min(sizes.values()) > 400
    assert min(booleans.values()) > 300
    expected = {key for field in FIELDS.values() for key in field.keys}
    chinese = {key for field in FIELDS.values() for key in field.zh_keys}
    assert keys == (expected if lang == "en" else expected | chinese)


def test_no_two_fields_of_a_sentence_share_a_key() -> None:
    for lang in LANGUAGES:
        for example in draw(lang, 500):
            assert example.messages is not None
            gold = json.loads(example.messages[1]["content"])
            assert len(gold) == len(example.meta["schema"]["properties"]) >= 2


@pytest.mark.parametrize("lang", LANGUAGES)
def test_score_compares_parsed_values(lang: str) -> None:
    for example in draw(lang, 300):
        assert example.messages is not None
        text = example.messages[1]["content"]
        gold = json.loads(text)
        key, value = next(iter(gold.items()))
        right = [text, f" {text}\n", json.dumps(gold, indent=1), json.dumps(gold, sort_keys=True)]
        assert all(TASK.score(example, {"content": good}) for good in right)
        wrong = [
            "",
            "null",
            f"[{text}]",
            text[:-1],
            text + ".",
            f"```json\n{text}\n```",
            json.dumps({**gold, key: [value]}),
            json.dumps({**gold, key: f"{value}x"}),
            json.dumps({**gold, "other": 1}),
            json.dumps(dict(list(gold.items())[1:])),
            text[:-1] + f', "{key}": {json.dumps(value)}}}',
        ]
        assert not any(TASK.score(example, {"content": bad}) for bad in wrong)
        assert not TASK.score(example, {"content": text, "tool_calls": [{}]})


def test_same_json_tells_types_apart() -> None:
    assert same_json({"a": 1, "b": [True, None]}, {"b": [True, None], "a": 1})
    for left, right in ((1, True), (1, 1.0), (1, "1"), (None, False), ([], {}), ({1}, {1})):
        assert not same_json(left, right)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": 1, "a": 1}', "{}{}", "[" * 100_000])
def test_parse_object_refuses(text: str) -> None:
    with pytest.raises(FormatError):
        parse_object(text)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_held_out_questions_are_never_trained(lang: str) -> None:
    held_out = {example.question() for example in draw(lang, 500, held_out=True)}
    assert len(held_out) == 500
    assert not held_out & {example.question() for example in draw(lang, 3000)}
