"""Two skills: `tool_call` makes one right call out of 1–4 offered tools, `tool_answer` tells its
result in a sentence.

A request names every argument word for word; the schema names the parameters, in variants, so both
have to be read. A `tool_answer` example is a whole conversation of one to three rounds, calls
included, so training on it also trains the call; one in twenty results is an error. Not covered:
requests that no offered tool can serve, several calls in one turn, calls without a request, results
that are not a JSON object.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from qwenkit.tasks.base import Example
from qwenkit.tasks.synth.json_objects import same_json
from qwenkit.tasks.synth.tool_pool import TOOLS, Tool, Values

FAILED = {"en": "The tool reports an error: {error}.", "zh": "工具出错了：{error}。"}
ERRORS = {
    "en": (
        "no connection",
        "access denied",
        "service is busy",
        "time limit reached",
        "invalid input",
        "not found",
    ),
    "zh": ("网络不通", "没有权限", "服务繁忙", "已经超时", "输入无效", "没有找到"),
}
ERROR_SHARE = 0.05
MORE_ROUNDS = (3, 4, 3)
"""Weights of 0, 1 and 2 more rounds in a `tool_answer` conversation. The definitions of the tools
are most of a prompt, so more rounds make much of them.
"""
MAX_DRAWS = 8
ENGLISH_SCHEMA_SHARE = 0.25
"""Share of the Chinese examples whose tools are described in English, as is common."""


@dataclass(frozen=True)
class Offer:
    """The tools on offer, as schemas, and for each tool (by its first name) what it is called here:
    the name of the function and the map from slot to parameter name.
    """

    tools: list[dict[str, Any]]
    names: dict[str, tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Ask:
    """What the user says, and the right call."""

    tool: Tool
    text: str
    values: Values
    call: dict[str, Any]

    def user(self) -> dict[str, Any]:
        """The user's message."""
        return {"role": "user", "content": self.text}

    def assistant(self) -> dict[str, Any]:
        """The right assistant message."""
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": self.call}],
        }


def draw_offer(rng: random.Random, lang: str, weights: tuple[int, ...]) -> tuple[Tool, Offer]:
    """A tool and an offer with it; `weights[i]` is the weight of offering i + 1 tools."""
    tool = rng.choice(TOOLS)
    count = rng.choices(range(1, len(weights) + 1), weights)[0]
    schema_lang = "en" if rng.random() < ENGLISH_SCHEMA_SHARE else lang
    offered = [tool, *rng.sample([other for other in TOOLS if other is not tool], count - 1)]
    rng.shuffle(offered)
    tools, names = [], {}
    for each in offered:
        schema, slots = each.schema(schema_lang, rng)
        tools.append(schema)
        names[each.names[0]] = schema["function"]["name"], slots
    return tool, Offer(tools, names)


def draw_ask(rng: random.Random, lang: str, tool: Tool, offer: Offer) -> Ask:
    """A request that `tool`, which is on offer, serves."""
    values = tool.values(rng, lang)
    template = rng.choice(tool.asks[lang])
    name, slots = offer.names[tool.names[0]]
    given = [each for each in tool.params if each.required or f"{{{each.slot}}}" in template]
    call = {"name": name, "arguments": {slots[each.slot]: values[each.slot] for each in given}}
    return Ask(tool, template.format(**values), values, call)


class ToolCall:
    """User request and offered tools → exactly one call."""

    name = "tool_call"

    def sample(self, rng: random.Random, lang: str) -> Example:
        tool, offer = draw_offer(rng, lang, (3, 3, 2, 2))
        ask = draw_ask(rng, lang, tool, offer)
        messages = [ask.user(), ask.assistant()]
        return Example(self.name, lang, messages=messages, tools=offer.tools)

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """Name and arguments are equal as parsed JSON, and there is nothing beside the call."""
        assert example.messages is not None
        gold = example.messages[-1]
        if str(answer.get("content") or "").strip() != gold["content"]:
            return False
        return same_json(_calls(answer), _calls(gold))


def _calls(message: dict[str, Any]) -> list[list[Any]]:
    """(name, arguments) of every call; ids and types do not count."""
    functions = [call.get("function", call) for call in message.get("tool_calls") or []]
    return [[function.get("name"), function.get("arguments")] for function in functions]


class ToolAnswer:
    """Request, call and the tool's JSON result → one sentence that says the result."""

    name = "tool_answer"

    def sample(self, rng: random.Random, lang: str) -> Example:
        while True:
            tool, offer = draw_offer(rng, lang, (5, 3, 1, 1))
            messages = self._round(rng, lang, tool, offer)
            held_out = self._side(lang, messages, offer)
            if held_out is not None:
                break
        for _ in range(rng.choices((0, 1, 2), MORE_ROUNDS)[0]):
            messages = self._extend(rng, lang, messages, offer, held_out)
        return Example(self.name, lang, messages=messages, tools=offer.tools)

    def _round(
        self, rng: random.Random, lang: str, tool: Tool, offer: Offer
    ) -> list[dict[str, Any]]:
        """Request, call, result, sentence."""
        ask = draw_ask(rng, lang, tool, offer)
        if rng.random() < ERROR_SHARE:
            result: Values = {"error": rng.choice(ERRORS[lang])}
            sentence = FAILED[lang].format(**result)
        else:
            result = tool.result(rng, lang, ask.values)
            sentence = tool.says[lang].format(**(ask.values | result))
        return [
            ask.user(),
            ask.assistant(),
            {"role": "tool", "content": json.dumps(result, ensure_ascii=False)},
            {"role": "assistant", "content": sentence},
        ]

    def _side(self, lang: str, messages: list[dict[str, Any]], offer: Offer) -> bool | None:
        """Whether a round is held out; None if its call and its sentence, which are both trained,
        lie on different sides of the split.
        """
        sides = {
            Example(skill, lang, messages=part, tools=offer.tools).is_held_out()
            for skill, part in ((ToolCall.name, messages[:2]), (self.name, messages))
        }
        return sides.pop() if len(sides) == 1 else None

    def _extend(
        self,
        rng: random.Random,
        lang: str,
        messages: list[dict[str, Any]],
        offer: Offer,
        held_out: bool,
    ) -> list[dict[str, Any]]:
        """One more round with the same tools, that on its own and in its place is on this side of
        the split; `messages` as they are where none is found soon (as is usual if held out).
        """
        for _ in range(MAX_DRAWS):
            tool = rng.choice([each for each in TOOLS if each.names[0] in offer.names])
            more = self._round(rng, lang, tool, offer)
            whole = Example(self.name, lang, messages=[*messages, *more], tools=offer.tools)
            if self._side(lang, more, offer) == held_out == whole.is_held_out():
                return [*messages, *more]
        return messages

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """The text is equal, up to white space around it, and no tool is called again."""
        assert example.messages is not None
        text = str(answer.get("content") or "").strip()
        return text == example.messages[-1]["content"] and not answer.get("tool_calls")
