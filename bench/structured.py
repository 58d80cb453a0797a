"""Answers held to random JSON schemas: `python bench/structured.py [--count 10000] [--seed N]`.

Draws schemas over all supported keywords, lets tiny-instruct answer at temperature 1 in batches,
and holds every answer that ended by itself against its schema with `jsonschema`, formats too (by
`jsonschema_rs`, which knows all of them). One that does not validate, or that the engine gave up,
is printed and makes the run fail. Answers that reach max_tokens are counted and claim nothing, as
are schemas that are refused: at random, some ask for what cannot be. `--random` draws tokens at
random in place of the model, which goes to corners where no model goes. 10,000 take some eight
minutes with the model, five with random tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import re
import time
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import jsonschema
import jsonschema_rs
import numpy as np
from goals import at_least, exactly, finish

from qwenkit import LLM
from qwenkit.errors import EngineError, RequestError
from qwenkit.io.hub import resolve
from qwenkit.llm.files import read_files
from qwenkit.llm.grammars import Grammars
from qwenkit.prompt.constraint import constraint_of
from qwenkit.prompt.grammar import Matcher, Vocabulary
from qwenkit.prompt.schema import FORMATS

NAMES = (
    "id",
    "name",
    "Größe",
    "城市",
    'a"b',
    "a b",
    "x/y",
    "~t",
    "",
    "__proto__",
    "😀",
    "k\n",
    "Z9",
)
PATTERNS = ("^[a-z]{2,6}$", "[0-9]", "^(ab|cd)+$", "^[^x]*$", "^\\d{3}-\\d{4}$", "^.{1,8}$", "é|ü")
PROMPTS = ("Give me the record of Anna as JSON.", "Write JSON.", "天气怎么样？", "What is 12 + 30?")


class Schemas:
    """Random schemas; most of them can be satisfied."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def schema(self) -> Any:
        """One schema, sometimes with definitions that refer to themselves."""
        self.definitions: dict[str, Any] = {}
        root = self.value(3)
        for name in list(self.definitions):
            self.definitions[name] = self.object(1)
        return {**root, "$defs": self.definitions} if self.definitions else root

    def value(self, depth: int) -> dict[str, Any]:
        kinds = ["string", "integer", "number", "null", "boolean", "enum", "const", "types"]
        if depth:
            kinds += [
                "object",
                "object",
                "object",
                "array",
                "array",
                "anyOf",
                "allOf",
                "oneOf",
                "ref",
            ]
        made: dict[str, Any] = getattr(self, self.draw.choice(kinds))(depth)
        if self.draw.random() < 0.2:
            made = {"title": "a note", "description": "…", **made}
        return made

    def null(self, depth: int) -> dict[str, Any]:
        return {"type": "null"}

    def boolean(self, depth: int) -> dict[str, Any]:
        return {"type": "boolean"}

    def types(self, depth: int) -> dict[str, Any]:
        kinds = ["string", "integer", "number", "null", "boolean"]
        return {"type": self.draw.sample(kinds, self.draw.randint(1, 3))}

    def string(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "string"}
        match self.draw.randrange(5):
            case 0:
                made["pattern"] = self.draw.choice(PATTERNS)
            case 1:
                made["format"] = self.draw.choice(FORMATS)
            case 2:
                made["minLength"] = self.draw.randint(0, 5)
                made["maxLength"] = made["minLength"] + self.draw.randint(0, 12)
            case 3:
                made |= {"pattern": self.draw.choice(PATTERNS), "maxLength": 9}
            case _:
                made["maxLength"] = self.draw.randint(0, 30)
        return made

    def integer(self, depth: int) -> dict[str, Any]:
        return self.number(depth) | {"type": "integer"}

    def number(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "number"}
        low = self.draw.choice([-1000, -7, 0, 1, 3])
        if self.draw.random() < 0.5:
            made[self.draw.choice(["minimum", "exclusiveMinimum"])] = low
        if self.draw.random() < 0.5:
            high = low + self.draw.choice([2, 10, 100_000])
            made[self.draw.choice(["maximum", "exclusiveMaximum"])] = high
        if self.draw.random() < 0.2:
            made["multipleOf"] = self.draw.choice([1, 2, 5, 7, 25])
        return made

    def enum(self, depth: int) -> dict[str, Any]:
        values = [
            1,
            -2,
            0.5,
            "a",
            "Größe",
            "",
            "a\nb",
            '"',
            None,
            True,
            [1, "x"],
            {"k": [None]},
            "7",
        ]
        return {"enum": self.draw.sample(values, self.draw.randint(1, 5))}

    def const(self, depth: int) -> dict[str, Any]:
        return {
            "const": self.draw.choice([0, 12, "yes", "€", None, False, [], {}, {"a": {"b": 1}}])
        }

    def object(self, depth: int) -> dict[str, Any]:
        names = self.draw.sample(NAMES, self.draw.randint(0, 5))
        made: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.value(max(depth - 1, 0)) for name in names},
            "required": [name for name in names if self.draw.random() < 0.6],
        }
        match self.draw.randrange(6):
            case 0:
                made["additionalProperties"] = self.value(0)
            case 1:
                made["patternProperties"] = {"^x_[a-z]+$": self.value(0)}
                made["additionalProperties"] = False
            case 2:
                made |= {"required": names, "minProperties": len(names) + self.draw.randint(0, 1)}
                made |= {"maxProperties": len(names) + 2, "additionalProperties": self.value(0)}
            case 3:
                made["required"] = [*made["required"], "extra"]
            case _:
                made["additionalProperties"] = False
        return made

    def array(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "array", "items": self.value(depth - 1)}
        if self.draw.random() < 0.6:
            made["minItems"] = self.draw.randint(0, 3)
            made["maxItems"] = made["minItems"] + self.draw.randint(0, 3)
        if self.draw.random() < 0.3:
            made["prefixItems"] = [self.value(0) for _ in range(self.draw.randint(1, 2))]
            if self.draw.random() < 0.5:
                made["items"] = False
                made.pop("minItems", None)
        return made

    def anyOf(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.value(depth - 1) for _ in range(self.draw.randint(1, 3))]}

    def oneOf(self, depth: int) -> dict[str, Any]:
        return {
            "oneOf": [self.string(0), self.number(0), {"type": "null"}][: self.draw.randint(1, 3)]
        }

    def allOf(self, depth: int) -> dict[str, Any]:
        both = [self.object(depth - 1), {"type": "object", "required": ["name"]}]
        return {"allOf": both, "properties": {"name": {"type": "string", "maxLength": 9}}}

    def ref(self, depth: int) -> dict[str, Any]:
        name = self.draw.choice(["node", "a/b~c", "ünï"])
        self.definitions.setdefault(name, None)
        pointer = "#/$defs/" + name.replace("~", "~0").replace("/", "~1")
        return {"anyOf": [{"type": "null"}, {"$ref": pointer}]}


def format_checker() -> jsonschema.FormatChecker:
    """All formats that can be asked for; `jsonschema` alone passes over most of them."""
    checker = jsonschema.FormatChecker(())
    for name in FORMATS:
        rules = jsonschema_rs.Draft202012Validator({"format": name}, validate_formats=True)
        assert not rules.is_valid("not such a thing"), name
        checker.checks(name)(rules.is_valid)
    return checker


CHECKER = format_checker()


def problem(schema: Any, text: str) -> str | None:
    """What `jsonschema` has against an answer. Decimals on both sides: 0.3 is a multiple of 0.1."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        value = json.loads(text, parse_float=_decimal)
        jsonschema.Draft202012Validator(exact, format_checker=CHECKER).validate(value)
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0][:200]
    return None


def _decimal(digits: str) -> Decimal | float:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent of twenty digits
        return float(digits)


def answer_at_random(matcher: Matcher, vocabulary: Vocabulary, draw: random.Random) -> str | None:
    """Random tokens of the grammar, ends and short tokens liked best; None when there are 2,000."""
    words, written = np.empty(vocabulary.num_words, np.int32), b""
    ends = set(vocabulary.ends)
    for step in range(2000):
        matcher.fill(words)
        ids = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        found = ends.intersection(ids.tolist())
        if found and (len(found) == len(ids) or draw.random() < 0.3):
            return written.decode()
        picks = [int(draw.choice(ids)) for _ in range(1 + min(step // 20, 12))]
        token = min(picks, key=lambda i: 99 if i in ends else len(vocabulary.tokens[i]))
        if token in ends:
            return written.decode()
        assert matcher.accept(token)
        written += vocabulary.tokens[token]
    return None


def random_answers(count: int, seed: int) -> Iterator[tuple[Any, str | None, str]]:
    """(schema, answer, how it ended), with random tokens."""
    files = read_files(resolve("tiny-instruct"))
    grammars = Grammars(files.tokenizer, files.generation.eos_token_ids)
    schemas, draw = Schemas(seed), random.Random(seed)
    for _ in range(count):
        schema = schemas.schema()
        try:
            constraint = constraint_of(response_format=asked(schema))
            assert constraint is not None
            grammar = grammars.compile(constraint)
        except RequestError as error:
            yield schema, None, refusal(error)
            continue
        text = answer_at_random(grammar.matcher(), grammar.vocabulary, draw)
        yield schema, text, "length" if text is None else "stop"
    grammars.close()


def model_answers(count: int, seed: int) -> Iterator[tuple[Any, str | None, str]]:
    """(schema, answer, how it ended), with tiny-instruct; 16 schemas at a time."""
    schemas, draw = Schemas(seed), random.Random(seed)

    async def answer(llm: LLM, schema: Any) -> tuple[Any, str | None, str]:
        options: dict[str, Any] = {"response_format": asked(schema), "seed": draw.getrandbits(30)}
        try:
            result = await llm.achat(
                draw.choice(PROMPTS), max_tokens=160, temperature=1.0, **options
            )
        except RequestError as error:
            return schema, None, refusal(error)
        except EngineError as error:
            return schema, None, f"error: {error}"
        return schema, result.text, result.finish_reason

    async def batch(llm: LLM, size: int) -> list[tuple[Any, str | None, str]]:
        return await asyncio.gather(*(answer(llm, schemas.schema()) for _ in range(size)))

    with LLM("tiny-instruct") as llm:
        for done in range(0, count, 16):  # more may not wait to be compiled
            yield from asyncio.run(batch(llm, min(16, count - done)))


def asked(schema: Any) -> dict[str, Any]:
    """The schema as `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def refusal(error: RequestError) -> str:
    """Why a schema was refused, without its own names."""
    return f"refused: {re.split('[^a-zA-Z .,:]', error.message)[0].strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers held to random JSON schemas.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--random", action="store_true", help="random tokens instead of a model")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    ended: collections.Counter[str] = collections.Counter()
    wrong, different, started = 0, set[str](), time.monotonic()
    for schema, text, reason in (random_answers if options.random else model_answers)(
        options.count, seed
    ):
        ended[reason] += 1
        different.add(json.dumps(schema))
        found = problem(schema, text) if reason == "stop" and text is not None else None
        wrong += found is not None
        if found is not None or reason.startswith("error"):
            print(f"BAD {found or reason}\n  {json.dumps(schema)}\n  {text!r}", flush=True)
    for reason, times in ended.most_common():
        print(f"{times:6} {reason}")
    took = time.monotonic() - started
    print(f"{options.count} schemas, {len(different)} different ones, in {took:.0f} s")
    given_up = sum(times for reason, times in ended.items() if reason.startswith("error"))
    at_least("structured: answers that ended by themselves", ended["stop"], options.count // 2)
    exactly("structured: of these, answers that do not validate", wrong, 0)
    exactly("structured: answers that the engine gave up", given_up, 0)
    finish()


if __name__ == "__main__":
    main()
