"""Two skills: `tool_call` makes one right call out of 1–4 offered tools, `tool_answer` tells its
result in a sentence.

A request names every argument word for word; the schema names the parameters, in variants, so both
have to be read. One `tool_call` example in ten offers no tool that fits, and the right answer is
then `NO_TOOL`. A `tool_answer` example is the whole conversation, call included, so training on it
also trains the call; one in twenty results is an error. Not covered: several calls in one turn,
calls without a request, results that are not a JSON object.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from qwenkit.tasks.base import Example
from qwenkit.tasks.synth.json_objects import same_json
from qwenkit.tasks.synth.tool_pool import TOOLS, Tool, Values

NO_TOOL = {
    "en": "None of the offered tools fits this request.",
    "zh": "提供的工具都不适合这个请求。",
}
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
UNFIT_SHARE = 0.1
ERROR_SHARE = 0.05
ENGLISH_SCHEMA_SHARE = 0.25
"""Share of the Chinese examples whose tools are described in English, as is common."""

# With no fitting tool on offer, a near one must not be there either: searching the web fits almost
# any request, and a
# reminder can be had from a timer.
_NEAR = (
    {"set_timer", "set_alarm", "add_todo", "add_event"},
    {"calculate", "convert_currency"},
)


@dataclass(frozen=True)
class Ask:
    """One request: the offered tools, what the user says, and the right call (None if no tool
    fits).
    """

    tool: Tool
    tools: list[dict[str, Any]]
    text: str
    values: Values
    call: dict[str, Any] | None

    def assistant(self, lang: str) -> dict[str, Any]:
        """The right assistant message."""
        if self.call is None:
            return {"role": "assistant", "content": NO_TOOL[lang]}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": self.call}],
        }


def _near(tool: Tool) -> set[str]:
    """First names of the tools that could also serve a request for `tool`."""
    return {"search_web", tool.names[0]}.union(
        *(group for group in _NEAR if tool.names[0] in group)
    )


def draw_ask(rng: random.Random, lang: str, weights: tuple[int, ...], *, fits: bool = True) -> Ask:
    """Draw a request and the tools on offer; `weights[i]` is the weight of offering i + 1 tools."""
    tool = rng.choice(TOOLS)
    count = rng.choices(range(1, len(weights) + 1), weights)[0]
    schema_lang = "en" if rng.random() < ENGLISH_SCHEMA_SHARE else lang
    avoided = {tool.names[0]} if fits else _near(tool)
    others = rng.sample([other for other in TOOLS if other.names[0] not in avoided], count - fits)
    schema, names = tool.schema(schema_lang, rng)
    tools = [other.schema(schema_lang, rng)[0] for other in others] + ([schema] if fits else [])
    rng.shuffle(tools)

    values = tool.values(rng, lang)
    template = rng.choice(tool.asks[lang])
    given = [param for param in tool.params if param.required or f"{{{param.slot}}}" in template]
    arguments = {names[param.slot]: values[param.slot] for param in given}
    call = {"name": schema["function"]["name"], "arguments": arguments} if fits else None
    return Ask(tool, tools, template.format(**values), values, call)


class ToolCall:
    """User request and offered tools → exactly one call, or `NO_TOOL`."""

    name = "tool_call"

    def sample(self, rng: random.Random, lang: str) -> Example:
        ask = draw_ask(rng, lang, (3, 3, 2, 2), fits=rng.random() >= UNFIT_SHARE)
        messages = [{"role": "user", "content": ask.text}, ask.assistant(lang)]
        return Example(self.name, lang, messages=messages, tools=ask.tools)

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
            example = self._draw(rng, lang)
            assert example.messages is not None
            # The call is trained too, so its question must lie on the same side of the split as the
            # whole.
            call = Example(ToolCall.name, lang, messages=example.messages[:2], tools=example.tools)
            if call.is_held_out() == example.is_held_out():
                return example

    def _draw(self, rng: random.Random, lang: str) -> Example:
        ask = draw_ask(rng, lang, (5, 3, 1, 1))
        if rng.random() < ERROR_SHARE:
            result: Values = {"error": rng.choice(ERRORS[lang])}
            sentence = FAILED[lang].format(**result)
        else:
            result = ask.tool.result(rng, lang, ask.values)
            sentence = ask.tool.says[lang].format(**(ask.values | result))
        messages = [
            {"role": "user", "content": ask.text},
            ask.assistant(lang),
            {"role": "tool", "content": json.dumps(result, ensure_ascii=False)},
            {"role": "assistant", "content": sentence},
        ]
        return Example(self.name, lang, messages=messages, tools=ask.tools)

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """The text is equal, up to white space around it, and no tool is called again."""
        assert example.messages is not None
        text = str(answer.get("content") or "").strip()
        return text == example.messages[-1]["content"] and not answer.get("tool_calls")
