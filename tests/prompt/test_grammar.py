"""Grammars over real vocabularies: what they let through, as bytes, and which tokens never."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from qwenkit.errors import EngineError, RequestError
from qwenkit.io.hub import resolve
from qwenkit.prompt.constraint import constraint_of
from qwenkit.prompt.grammar import Grammar, Matcher, Vocabulary, check_lark, grammar_text
from qwenkit.prompt.grammar_worker import answer
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tools import parse_tool_calls

GET = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
PUT = {
    "type": "function",
    "function": {
        "name": "put",
        "parameters": {
            "type": "object",
            "properties": {"n": {"$ref": "#/$defs/n"}},
            "required": ["n"],
            "additionalProperties": False,
            "$defs": {"n": {"type": "integer"}},
        },
    },
}
GET_CALL = '<tool_call>\n{"name": "get", "arguments": {"q": "a"}}\n</tool_call>'
PUT_CALL = '<tool_call>\n{"name": "put", "arguments": {"n": 7}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(resolve("tiny-instruct"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    special = tokenizer.special_ids
    return Vocabulary.of(tokenizer, [special["<|im_end|>"], special["<|endoftext|>"]])


def grammar(vocabulary: Vocabulary, **asked: Any) -> Grammar:
    constraint = constraint_of(**asked)
    assert constraint is not None
    return Grammar(vocabulary, grammar_text(constraint.spec, vocabulary.calls))


def schema(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": value, **more}}


def accepts(compiled: Grammar, ids: Sequence[int]) -> bool:
    matcher = compiled.matcher()
    return all(matcher.accept(token) for token in ids) and matcher.complete


def allowed(matcher: Matcher, vocabulary: Vocabulary) -> set[int]:
    words = np.empty(vocabulary.num_words, np.int32)
    matcher.fill(words)
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"regex": "^a+b$"}, ["ab", "aaab"], ["b", "ab\n", "xab", ""]),
        ({"regex": "(a+)+$"}, ["a", "aaaa"], ["ab"]),
        ({"regex": "(a|a)*b"}, ["b", "aab"], ["a"]),
        ({"regex": "(?:ab|c)/d"}, ["ab/d", "c/d"], ["ab"]),
        ({"regex": "a{1,100000}"}, ["a", "a" * 300], ["b"]),
        ({"choice": ["yes", "yes, but", 'no"\n', "<|im_end|>", "是"]},
         ["yes", "yes, but", 'no"\n', "<|im_end|>", "是"], ["y", "no", "yes,"]),
        ({"grammar": 'start: "a" list // <x>\nlist: "[" (/[0-9]+/ ("," /[0-9]+/)*)? "]" # <y>'},
         ["a[]", "a[1,22]"], ["a", "a[1,]"]),
        ({"grammar": 'root ::= "<" item ("," item)* ">" # <x>\nitem ::= [a-c/]+ | root'},
         ["<a>", "<a/c,<b>,b>"], ["<>", "a", "<a,>", "<d>"]),
        ({"response_format": {"type": "json_object"}},
         ["{}", '{"a": [1, {"b": null}]}', '{"a":1,"b":2}'], ["[]", "1", '{"a":  1}', '{ "a": 1}']),
        ({"response_format": schema({"type": "string", "minLength": 2, "maxLength": 2})},
         ['"ab"', '"😀é"'], ['"a"', '"😀"', '"\\ud83d\\ude00"']),
        ({"response_format": schema(True)}, ["1", "null", '{"a":[]}'], ["x"]),
        ({"response_format": schema({"type": "object", "properties": {"a": {}, "b": {}},
                                     "required": ["b"], "additionalProperties": False})},
         ['{"a": 1, "b": 2}', '{"b": 2}'], ['{"b": 2, "a": 1}', '{"a": 1}', '{"b": 1, "c": 2}']),
        ({"response_format": schema({"type": "array", "uniqueItems": True}, strict=False)},
         ["[1, 1]"], ["{}"]),
        ({"response_format": schema({"oneOf": [{"type": "number"}, {"type": "integer"}]},
                                    strict=False)}, ["1", "0.5"], ['"a"']),
    ],
)  # fmt: skip
def test_what_is_let_through(
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    asked: dict[str, Any],
    good: list[str],
    bad: list[str],
) -> None:
    compiled = grammar(vocabulary, **asked)
    for text in good:
        assert accepts(compiled, tokenizer.encode(text)), text
    for text in bad:
        assert not accepts(compiled, tokenizer.encode(text)), text


FORMATTED: dict[str, tuple[list[str], list[str]]] = {
    "date": (["2024-02-29", "2000-02-29", "2023-02-28", "1999-12-31"],
             ["2023-02-29", "1900-02-29", "2024-02-30", "2024-13-01"]),
    "time": (["23:59:59Z", "08:02:30.5+01:00"], ["19:12:60Z", "24:00:00Z", "08:02"]),
    "date-time": (["2024-02-29T08:02:30Z"], ["2023-02-29T08:02:30Z", "2024-02-29T08:02:60Z"]),
    "hostname": (["example.com", "a-b.c1", "x" * 63], 
                 ["a--b.c", "x" * 64, "-a", "a..b", "a.b-", ".".join("a" * 128)]),
    "email": (["a.b+c@example.com", f"{'x' * 64}@a-b.de", "a@" + "b." * 40 + "c"],
              ["a@b@c", ".a@b", "a@-b", "a@b..c", f"{'x' * 65}@a.de", f"a@{'b' * 64}.de",
               "a@" + "b." * 130 + "c"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATTED)
def test_formats_are_those_of_their_documents(
    vocabulary: Vocabulary, tokenizer: Tokenizer, name: str
) -> None:
    """Also where the compiler's own idea of them is wider; other types are not meant by them."""
    good, bad = FORMATTED[name]
    either = grammar(vocabulary, response_format=schema({"format": name}))
    assert accepts(either, tokenizer.encode("12")) and accepts(either, tokenizer.encode("null"))
    short = schema({"type": "string", "format": name, "maxLength": 20, "pattern": "[0-9a]"})
    for compiled, most in ((either, 1000), (grammar(vocabulary, response_format=short), 20)):
        for text in good:
            fits = len(text) <= most and re.search("[0-9a]", text) is not None
            expected = most == 1000 or fits
            assert accepts(compiled, tokenizer.encode(f'"{text}"')) == expected, text
        for text in bad:
            assert not accepts(compiled, tokenizer.encode(f'"{text}"')), text


def test_keys_are_exact(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    keys = ['a"b', "\0", "😀", "__proto__", "", "//", "#", "\n", "\\", "\u2028", "x/y~z"]
    value = {"type": "object", "properties": dict.fromkeys(keys, {}), "required": keys}
    compiled = grammar(vocabulary, response_format=schema(value))
    text = json.dumps(dict.fromkeys(keys, 1), ensure_ascii=False)
    assert accepts(compiled, tokenizer.encode(text))


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"tool_choice": "required"}, [GET_CALL, PUT_CALL, f"{GET_CALL}\n{PUT_CALL}"],
         ["Hi.", f"Hi.{GET_CALL}", f"{GET_CALL}{PUT_CALL}", PUT_CALL.replace("7", '"7"')]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [GET_CALL],
         [f"{GET_CALL}\n{PUT_CALL}"]),
        ({"tool_choice": {"function": {"name": "put"}}}, [PUT_CALL], [GET_CALL]),
        ({"parallel_tool_calls": False}, ["Hi.", f"Hi. {GET_CALL}", PUT_CALL, ""],
         [f"{GET_CALL}\n{PUT_CALL}", PUT_CALL.replace("7", "x")]),
        ({"response_format": {"type": "json_object"}}, ['{"a": 1}', GET_CALL],
         ["Hi.", f'{{"a": 1}}{GET_CALL}']),
        ({"grammar": "start: /a+/"}, ["aa", PUT_CALL], ["b"]),
    ],
)  # fmt: skip
def test_tool_calls(
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    asked: dict[str, Any],
    good: list[str],
    bad: list[str],
) -> None:
    compiled = grammar(vocabulary, tools=[GET, PUT], **asked)
    for text in good:
        assert accepts(compiled, tokenizer.encode(text, allow_special=True)), text
        assert len(parse_tool_calls(text, ["get", "put"])[1]) == text.count("<tool_call>")
    for text in bad:
        assert not accepts(compiled, tokenizer.encode(text, allow_special=True)), text


def test_a_vocabulary_without_the_tags_spells_them() -> None:
    tokens = [bytes([i]) for i in range(256)] + [b"<end>"]
    vocabulary = Vocabulary(tokens, [256], [256], ['"<tool_call>"', '"</tool_call>"'])
    compiled = grammar(vocabulary, tools=[GET], tool_choice="required")
    assert accepts(compiled, list(GET_CALL.encode()))


def test_added_tokens_are_never_allowed_but_the_ends(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    special, ends = set(vocabulary.special), set(vocabulary.ends)
    matcher = grammar(vocabulary, regex="(?s:.*)").matcher()
    assert allowed(matcher, vocabulary) & special == ends
    compiled = grammar(vocabulary, tools=[GET], tool_choice="required")
    assert allowed(compiled.matcher(), vocabulary) == {tokenizer.special_ids["<tool_call>"]}
    # Even a grammar that names them, were it not refused before:
    named = Grammar(vocabulary, json.dumps({"grammars": [{"lark_grammar": "start: <[*]>"}]}))
    assert allowed(named.matcher(), vocabulary) & special <= ends | {
        tokenizer.special_ids["<tool_call>"],
        tokenizer.special_ids["</tool_call>"],
    }


def test_the_end_comes_when_the_grammar_is_complete(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    matcher = grammar(vocabulary, choice=["ab"]).matcher()
    assert not allowed(matcher, vocabulary) & set(vocabulary.ends)
    for token in tokenizer.encode("ab"):
        assert matcher.accept(token)
    assert allowed(matcher, vocabulary) == set(vocabulary.ends)
    assert matcher.complete


def test_refused_tokens_change_nothing_and_tokens_can_be_taken_back(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    compiled = grammar(vocabulary, response_format=schema({"type": "array"}))
    matcher, other = compiled.matcher(), compiled.matcher()
    ids = tokenizer.encode('["a", 12, {"k": ')
    before = []
    for token in ids:
        before.append(allowed(matcher, vocabulary))
        assert token in before[-1]
        assert not matcher.accept(tokenizer.special_ids["<|im_start|>"])
        assert matcher.accept(token)
    for place in range(len(ids) - 1, -1, -1):
        matcher.rollback(1)
        assert allowed(matcher, vocabulary) == before[place]
    for token in ids:
        assert matcher.accept(token)
    matcher.rollback(len(ids))
    matcher.rollback(0)
    assert allowed(matcher, vocabulary) == before[0] == allowed(other, vocabulary)
    with pytest.raises(EngineError, match="cannot go back"):
        matcher.rollback(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start: <|im_start|>", "special token"),
        ("start: <[8171]>", "special token"),
        ('start: "a" <[*]>', "special token"),
        ('start: a\na[max_tokens=3]: "b"', "max_tokens"),
        ('start: a\na[stop="x"]: /b*/', "stop"),
        ("start: a\na[temperature=0.5]: /b*/", "temperature"),
        ('%llguidance {"no_forcing": false}\nstart: "a"', "llguidance"),
    ],
)
def test_grammars_that_reach_too_far(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_lark(text)


def test_grammars_that_only_look_like_it() -> None:
    check_lark('%llguidance { }\nstart: "<" /<a\\/>/ "stop=" A // <|im_start|>\nA: "\\"<" # <b>')


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "("},
        {"regex": "(?=a)b"},
        {"regex": "(a)\\1"},
        {"regex": "a(?<!b)"},
        {"grammar": "begin: 1"},
        {"grammar": "start: missing"},
        {"grammar": 'root ::= ('},
        {"grammar": 'root ::= missing'},
        {"grammar": 'begin ::= "a"'},
        {"grammar": 'root ::= ' + '("a" ' * 5000},
        {"response_format": schema({"type": "string", "pattern": "("})},
        {"response_format": schema({"type": "string", "minLength": 3, "maxLength": 2})},
        {"response_format": schema({"type": "integer", "minimum": 3, "maximum": 2})},
        {"response_format": schema({"type": "string", "pattern": "^a{5}$", "maxLength": 3})},
        {"response_format": schema({"allOf": [{"type": "string"}, {"type": "null"}]})},
        {"response_format": schema({"oneOf": [{"type": "number"}, {"type": "integer"}]})},
        {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}],
         "tool_choice": "required"},
        {"tools": [{"function": {"name": "f", "strict": True, "parameters": {"not": {}}}}],
         "tool_choice": "required"},
    ],
)  # fmt: skip
def test_what_does_not_compile(vocabulary: Vocabulary, asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        grammar(vocabulary, **asked)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_tools_that_are_not_strict_may_have_what_cannot_be_enforced(vocabulary: Vocabulary) -> None:
    tool = {"function": {"name": "f", "parameters": {"properties": {}, "not": {"required": ["x"]}}}}
    grammar(vocabulary, tools=[tool], tool_choice="required")


def test_the_trying_process_answers(vocabulary: Vocabulary) -> None:
    def reply(**asked: Any) -> dict[str, Any]:
        constraint = constraint_of(**asked)
        assert constraint is not None
        return answer(vocabulary, constraint.spec, 0)

    good = reply(choice=["a", "b"])
    assert good["bytes"] > 0
    assert accepts(Grammar(vocabulary, good["grammar"]), [vocabulary.tokens.index(b"a")])
    assert "unclosed" in reply(regex="(")["error"]
    assert "No answer" in reply(grammar="start: a\na: b\nb: a")["error"]
    assert reply(response_format=schema({"not": {}}))["remedy"]


def test_the_published_vocabulary(qwen: Tokenizer) -> None:
    special = qwen.special_ids
    vocabulary = Vocabulary.of(qwen, [special["<|im_end|>"]])
    text = '{"name": "Größe 你好 <tool_call>", "n": -1.5e3}'
    value = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "number"}}}
    compiled = grammar(vocabulary, response_format=schema(value))
    assert accepts(compiled, qwen.encode(text))
    assert not accepts(compiled, qwen.encode(text, allow_special=True))
    matcher = compiled.matcher()
    for token in qwen.encode(text):
        assert token in allowed(matcher, vocabulary)
        assert matcher.accept(token)
    assert allowed(matcher, vocabulary) == {special["<|im_end|>"]}
    assert not matcher.accept(special["<|im_end|>"])
