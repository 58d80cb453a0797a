"""From a constraint to the tokens that may come next: grammars of `llguidance` over a vocabulary.

    vocabulary = Vocabulary.of(tokenizer, end_ids)
    grammar = Grammar(vocabulary, grammar_text(constraint.spec, vocabulary.calls))
    matcher = grammar.matcher()  # one for each answer
    matcher.fill(row)  # a bit for each token; matcher.accept(token) goes on

Contract: a `Matcher` allows exactly the tokens that keep the answer inside its grammar, as bytes,
and the end tokens where the grammar is complete. Of the added tokens it allows none but those, and
the two tags of a tool call where the grammar makes one. JSON is on one line, with or without a
space behind commas and colons, so that a weak model cannot go on with white space for ever. Work
and memory of each step are bounded (`LIMITS`).

Making a grammar is not safe by itself: hostile grammars take minutes, or all of the stack. So
`qwenkit.llm.grammars` lets a process of its own try first (`grammar_worker.py`).

Not covered: forced tokens; grammars that stop, sample or call back on their own.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from qwenkit.errors import EngineError, RequestError
from qwenkit.prompt.constraint import MAX_CALLS
from qwenkit.prompt.schema import check_schema
from qwenkit.prompt.tokenizer import Tokenizer

LIMITS = LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
CALL_TAGS = ("<tool_call>", "</tool_call>")
_OPTIONS = '%llguidance {"no_forcing": true}'
"""Forced text may be cut into tokens as the model likes; the library would ask the tokenizer."""
_SEPARATORS = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}


class Vocabulary:
    """The tokens as bytes, in the form that grammars are compiled against. Immutable.

    Building one holds Python's lock (0.4 s for 151,665 tokens), so do it before there is traffic.
    """

    def __init__(
        self, tokens: Sequence[bytes], special: Sequence[int], ends: Sequence[int], calls: list[str]
    ) -> None:
        self.tokens, self.special, self.ends, self.calls = tokens, special, ends, calls
        """`calls`: how a grammar spells the two tags around a tool call."""
        self.eos_token_id, self.bos_token_id = ends[0], None
        self.special_token_ids = special
        wrapper = TokenizerWrapper(self)
        self.library = LLTokenizer(wrapper, n_vocab=len(tokens), eos_token=list(ends))
        self.num_words = -(-len(tokens) // 32)

    def __call__(self, text: str) -> list[int]:
        """What `llguidance` would force tokens with; `_OPTIONS` keeps it from asking."""
        raise NotImplementedError

    @classmethod
    def of(cls, tokenizer: Tokenizer, ends: Sequence[int]) -> Vocabulary:
        """`ends`: the ids that end an answer."""
        known = tokenizer.special_ids
        tokens = [tokenizer.id_to_bytes(i) for i in range(tokenizer.vocab_size)]
        calls = [f"<[{known[t]}]>" if t in known else json.dumps(t) for t in CALL_TAGS]
        return cls(tokens, list(known.values()), list(ends), calls)

    def dump(self, file: BinaryIO) -> None:
        """Write what `load` reads."""
        lengths = array("I", map(len, self.tokens)).tobytes()
        head = [len(self.tokens), list(self.special), list(self.ends), self.calls]
        file.write(json.dumps(head).encode() + b"\n" + lengths + b"".join(self.tokens))

    @classmethod
    def load(cls, file: BinaryIO) -> Vocabulary:
        """Read what `dump` wrote."""
        count, special, ends, calls = json.loads(file.readline())
        lengths = array("I")
        lengths.frombytes(file.read(count * lengths.itemsize))
        return cls([file.read(length) for length in lengths], special, ends, calls)


class Grammar:
    """A compiled grammar. Any thread may use it."""

    def __init__(self, vocabulary: Vocabulary, text: str) -> None:
        """Errors: RequestError saying what is wrong with the grammar."""
        self.vocabulary, self.text = vocabulary, text
        self._first = LLMatcher(vocabulary.library, text, log_level=0, limits=LIMITS)
        if self._first.is_error():
            raise RequestError(f"The grammar is not usable: {_reason(self._first.get_error())}.")
        banned = np.zeros(32 * vocabulary.num_words, np.bool_)
        banned[[*vocabulary.special]] = True
        banned[[*vocabulary.ends]] = False
        banned[[int(i) for tag in vocabulary.calls for i in re.findall(r"\d+", tag)]] = False
        self._allowed = np.packbits(~banned, bitorder="little").view(np.int32)

    def matcher(self) -> Matcher:
        """A fresh start; any thread may ask."""
        return Matcher(self._first.deep_copy(), self._allowed)


class Matcher:
    """One answer's place in its grammar. Not thread-safe."""

    def __init__(self, library: LLMatcher, allowed: NDArray[np.int32]) -> None:
        self._library, self._allowed = library, allowed

    def fill(self, row: NDArray[np.int32]) -> None:
        """Write the mask of the next token: bit i of the words says whether token i may come.

        Errors: EngineError when the grammar became too complex, or allows no token.
        """
        fill_next_token_bitmask(self._library, row[None])
        if self._library.is_error():
            raise EngineError(f"The grammar cannot go on: {_reason(self._library.get_error())}.")
        row &= self._allowed
        if not row.any():
            raise EngineError("The grammar allows no token here.")

    def accept(self, token: int) -> bool:
        """Go on with a token. False, and the place unchanged, when it is not allowed; so too for an
        end token, after which there is nothing to go on with.
        """
        return self._library.try_consume_tokens([token]) == 1

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens."""
        if count and not self._library.rollback(count):
            raise EngineError(f"The grammar cannot go back: {_reason(self._library.get_error())}.")

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._library.is_accepting()


# The text of a grammar


def grammar_text(spec: str | bytes, calls: Sequence[str]) -> str:
    """A constraint's grammar in `llguidance`'s JSON form. `calls`: see `Vocabulary`.

    Errors: RequestError.
    """
    wanted = json.loads(spec)
    body, called = wanted["body"], wanted["calls"]
    rules = [] if called is None else _call_rules(called, calls)
    grammars: list[dict[str, Any]] = []
    if called is None:
        start = "start: @body"
    elif body is None:
        start = "start: calls"
    elif body["kind"] == "text":
        start = "start: TEXT calls?\nTEXT: /(?s:.*)/"
    else:
        start = "start: calls | @body"
    if "@body" in start:
        grammars.append({"name": "body", **_body(body)})
    main = {"lark_grammar": "\n".join([_OPTIONS, start, *rules])}
    return json.dumps({"grammars": [main, *grammars]})


def _body(body: dict[str, Any]) -> dict[str, Any]:
    kind = body["kind"]
    if kind == "json_object":
        return {"json_schema": _with_options({"type": "object"}, strict=True)}
    if kind == "json_schema":
        checked = check_schema(body["schema"], strict=body["strict"])
        if isinstance(checked, bool):  # true: any value; false was refused
            checked = {}
        return {"json_schema": _with_options(checked, body["strict"])}
    if kind == "regex":
        return {"lark_grammar": f"start: /{regex_to_lark(body['pattern'], '')}/"}
    if kind == "choice":
        return {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(_quoted, body["texts"]))}
    text = _lark(body["text"])
    check_lark(text)
    return {"lark_grammar": text}


def _call_rules(called: dict[str, Any], tags: Sequence[str]) -> list[str]:
    """Qwen's form: the name comes first, then the arguments, each call on three lines."""
    opener, closer = tags
    tools = called["tools"]
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if called["many"] else ""
    rules = [f"calls: call{more}", f'call: {opener} "\\n" ({names}) "\\n" {closer}']
    for i, tool in enumerate(tools):
        head = _quoted(f'{{"name": {json.dumps(tool["name"])}, "arguments": ')
        rules.append(f'call_{i}: {head} %json {json.dumps(_arguments(tool))} "}}"')
    return rules


def _arguments(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", **tool["parameters"]}
    if parameters["type"] != "object":
        text = f"The parameters of the tool {tool['name']} are not an object."
        raise RequestError(text, param="tools")
    try:
        checked = check_schema(parameters, strict=tool["strict"])
    except RequestError as error:
        text = f"Tool {tool['name']}: {error.message}"
        raise RequestError(text, error.remedy, param="tools") from error
    assert isinstance(checked, dict)
    return _with_options(checked, tool["strict"])


def _with_options(schema: dict[str, Any], strict: bool) -> dict[str, Any]:
    return {"x-guidance": {**_SEPARATORS, "coerce_one_of": not strict}, **schema}


def _quoted(text: str) -> str:
    return json.dumps(text)


_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def _lark(text: str) -> str:
    """A caller's grammar in Lark; one in llama.cpp's GBNF (`root ::= …`) is translated."""
    if not _GBNF.search(text):
        return text
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # the library has no class for what is wrong with a grammar
        raise RequestError(f"The GBNF grammar is not usable: {_reason(str(error))}.") from error


_LARK_PARTS = re.compile(
    r"""(?P<skip>"(?:\\.|[^"\\\n])*" | //[^\n]* | \#[^\n]* | /(?:\\.|[^/\\\n])+/)
      | (?P<token><)
      | (?P<option>%llguidance(?!\s*\{\s*\}) | \b(?:max_tokens|temperature|stop)\s*=)""",
    re.VERBOSE,
)


def check_lark(text: str) -> None:
    """What a caller's own grammar may not do: name added tokens, sample, stop, or count tokens.

    Errors: RequestError.
    """
    for part in _LARK_PARTS.finditer(text):
        if part["token"]:
            raise RequestError(
                "The grammar names a special token with <…>, which an answer may not contain.",
                "Write the text in quotes.",
            )
        if part["option"]:
            raise RequestError(
                f"The grammar has {part['option']!r:.40}, which is not supported.", "Leave it out."
            )


def _reason(error: str) -> str:
    """The first lines of the library's message, which may be long and show a whole grammar."""
    text = error.split("<non-verbose/>")[0].split("<state>")[0]
    return " ".join(text.split()).rstrip(".")[:300]
