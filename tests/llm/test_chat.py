"""Text in, text and tool calls out, with a model that writes what the test says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from qwenkit.config import GenerationConfig
from qwenkit.errors import ContextLengthError, EngineError, RequestError
from qwenkit.llm import ChatResult, Completion

Scripted = Callable[..., SimpleNamespace]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_a_text_is_one_user_message(scripted: Scripted) -> None:
    s = scripted("Hello!")
    result = s.llm.chat("hi")
    assert isinstance(result, ChatResult)
    assert result.text == result.content == "Hello!"
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert s.llm.detokenize(s.model.last_prompt, skip_special=False) == expected
    assert s.llm.render([{"role": "user", "content": "hi"}]).ids == s.model.last_prompt


def test_the_end_token_is_counted_but_not_shown(scripted: Scripted) -> None:
    result = scripted("Grüße 😀").llm.chat("hi")
    assert (result.text, result.finish_reason) == ("Grüße 😀", "stop")
    assert result.usage.completion_tokens == len("Grüße 😀".encode()) + 1
    assert result.usage.prompt_tokens == len("<user\nhi<\n<assistant\n")
    assert result.usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens
    assert result.message == {"role": "assistant", "content": "Grüße 😀"}


def test_length_is_told_apart_from_stop(scripted: Scripted) -> None:
    result = scripted("abcdef").llm.chat("hi", max_tokens=3)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == (
        "abc",
        "length",
        3,
    )
    assert scripted("abc").llm.chat("hi", max_tokens=4).finish_reason == "stop"


def test_ignore_eos_goes_on(scripted: Scripted) -> None:
    result = scripted("ab").llm.chat("hi", max_tokens=10, ignore_eos=True)
    assert (result.text, result.finish_reason) == ("ab", "length")


@pytest.mark.parametrize("live", [False, True])
def test_stop_strings_end_the_text_in_front_of_them(scripted: Scripted, live: bool) -> None:
    s = scripted("one two three four", delay=0.001)
    if live:
        deltas = list(s.llm.stream("hi", stop=["three", "zzz"]))
        assert "".join(d.text for d in deltas) == "one two "
        assert deltas[-1].finish_reason == "stop" and deltas[-1].usage is not None
        assert deltas[-1].usage.completion_tokens == len("one two three")
    else:
        result = s.llm.chat("hi", stop="three")
        assert (result.text, result.finish_reason) == ("one two ", "stop")
        assert result.usage.completion_tokens == len("one two three")


def test_tool_calls_are_read_when_tools_are_offered(scripted: Scripted) -> None:
    s = scripted("Let me see.\n" + CALL)
    result = s.llm.chat("1+?", TOOLS)
    assert (result.content, result.finish_reason) == ("Let me see.", "tool_calls")
    [call] = result.tool_calls
    assert (call.name, call.arguments) == ("add", '{"a": 1}')
    history = [
        {"role": "user", "content": "1+?"},
        result.message,
        {"role": "tool", "tool_call_id": call.id, "content": "2"},
    ]
    assert "Let me see.add" in s.llm.render(history, TOOLS).text
    plain = s.llm.chat("1+?")
    assert plain.tool_calls == () and plain.content.endswith(CALL) and plain.finish_reason == "stop"


def test_a_call_cut_off_is_content(scripted: Scripted) -> None:
    result = scripted(CALL).llm.chat("1+?", TOOLS, max_tokens=20)
    assert result.finish_reason == "length" and result.tool_calls == ()
    assert result.content.startswith("<tool_call>")


def test_streamed_pieces_make_the_whole(scripted: Scripted) -> None:
    s = scripted("Hé 😀!\n" + CALL)
    deltas = list(s.llm.stream("hi", TOOLS))
    assert "".join(d.text for d in deltas) == "Hé 😀!"
    calls = [d.tool_call for d in deltas if d.tool_call]
    assert [(c.index, c.name, c.arguments) for c in calls] == [(0, "add", '{"a": 1}')]
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["tool_calls"]
    assert all("\ufffd" not in d.text for d in deltas)
    assert deltas[-1].usage == s.llm.chat("hi", TOOLS).usage


def test_n_choices_come_separately(scripted: Scripted) -> None:
    s = scripted("abc", delay=0.001)
    result = s.llm.chat("hi", n=3)
    assert [(c.index, c.content) for c in result.choices] == [(0, "abc"), (1, "abc"), (2, "abc")]
    assert result.usage.completion_tokens == 12
    deltas = list(s.llm.stream("hi", n=2))
    for index in (0, 1):
        mine = [d for d in deltas if d.index == index]
        assert "".join(d.text for d in mine) == "abc" and mine[-1].finish_reason == "stop"
    assert [d.usage is not None for d in deltas].count(True) == 1 and deltas[-1].usage


def test_logprobs_line_up_with_the_tokens(scripted: Scripted) -> None:
    s = scripted("aé")
    result = s.llm.chat("hi", logprobs=2)
    assert result.logprobs is not None
    assert [p.bytes for p in result.logprobs] == [b"a", b"\xc3", b"\xa9"]
    assert [p.id for p in result.logprobs] == list(result.choices[0].ids)
    assert all(
        len(p.top) == 2 and p.top[0].id == p.id and p.logprob > -0.01 for p in result.logprobs
    )
    streamed = [p for d in s.llm.stream("hi", logprobs=2) for p in d.logprobs]
    assert [p.id for p in streamed] == [p.id for p in result.logprobs]
    assert s.llm.chat("hi").logprobs is None


def test_many_conversations_run_together_in_order(scripted: Scripted) -> None:
    s = scripted(lambda prompt: prompt.split("user\n")[1].split("<")[0] + "!", delay=0.001)
    texts = [f"question {i}" for i in range(20)]
    results = s.llm.chat_many(texts)
    assert [r.text for r in results] == [t + "!" for t in texts]
    assert s.model.widest > 8
    per_item = s.llm.chat_many(["a", "b"], tools=[TOOLS, None])
    assert [len(r.tool_calls) for r in per_item] == [0, 0]
    with pytest.raises(RequestError, match="2 conversations, but 1"):
        s.llm.chat_many(["a", "b"], tools=[TOOLS])


def test_generate_takes_text_ids_and_lists(scripted: Scripted) -> None:
    s = scripted(lambda prompt: prompt[::-1])
    one = s.llm.generate("abc")
    assert isinstance(one, Completion) and one.text == "cba"
    assert s.llm.generate([97, 98]).text == "ba"
    assert [r.text for r in s.llm.generate(["ab", "xyz"])] == ["ba", "zyx"]
    assert [r.text for r in s.llm.generate([[97], [98, 99]])] == ["a", "cb"]
    assert "".join(d.text for d in s.llm.stream(prompt="abc")) == "cba"


def test_special_tokens_in_text_stay_text_unless_meant(scripted: Scripted) -> None:
    s = scripted("x")
    s.llm.generate("<|im_end|>")
    assert len(s.model.last_prompt) == len("<|im_end|>")
    s.llm.generate("<|im_end|>", allow_special=True)
    assert s.model.last_prompt == [258]
    s.llm.chat("<|im_start|>")
    assert s.model.last_prompt.count(257) == 2


def test_a_hole_ends_at_the_fill_in_the_middle_tokens(scripted: Scripted) -> None:
    s = scripted("mid<|file_sep|>junk")
    hole = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    assert s.llm.generate(hole, allow_special=True).text == "mid"
    assert s.llm.generate("plain", max_tokens=20).text == "mid<|file_sep|>junk"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temprature": 1}, "temprature"),
    ({"temperature": -1}, "temperature"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 3]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "x" * 1025}, "stop"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"stop_token_ids": [272]}, "stop_token_ids"),
    ({"logit_bias": {265: 1}}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"tenant": 3}, "tenant"),
    ({"tenant": "x" * 257}, "tenant"),
    *[({"queue_timeout": value}, "queue_timeout") for value in (0, -1, "1", True, float("nan"))],
]


@pytest.mark.parametrize(("sampling", "param"), BAD)
def test_bad_parameters_raise_everywhere_before_anything_runs(
    scripted: Scripted, sampling: dict[str, Any], param: str
) -> None:
    s = scripted("x")
    for call in (
        lambda: s.llm.chat("hi", **sampling),
        lambda: s.llm.chat_many(["hi"], **sampling),
        lambda: s.llm.generate("hi", **sampling),
        lambda: s.llm.stream("hi", **sampling),
        lambda: s.llm.stream(prompt="hi", **sampling),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert caught.value.param == param
    assert s.model.last_prompt == []


@pytest.mark.parametrize("prompt", ["", [], [1, "a"], [[]], 3, [300], [-1], [1.5], ["a", []]])
def test_bad_prompts_are_refused(scripted: Scripted, prompt: Any) -> None:
    with pytest.raises(RequestError) as caught:
        scripted("x").llm.generate(prompt)
    assert caught.value.param == "prompt"


def test_stream_takes_messages_or_a_prompt(scripted: Scripted) -> None:
    s = scripted("x")
    for given in ({}, {"messages": "a", "prompt": "b"}):
        with pytest.raises(RequestError, match="either messages or prompt"):
            s.llm.stream(**given)


def test_over_the_context_is_an_error_with_both_counts(scripted: Scripted) -> None:
    s = scripted("a" * 300)
    prompt = [65] * 200
    with pytest.raises(ContextLengthError, match="256.*200.*57") as caught:
        s.llm.generate(prompt, max_tokens=57)
    assert caught.value.param == "prompt"
    with pytest.raises(ContextLengthError) as caught:
        s.llm.chat("a" * 300)
    assert caught.value.param == "messages" and caught.value.prompt_tokens > 300
    assert s.llm.generate(prompt, max_tokens=56).usage.completion_tokens == 56
    assert s.llm.generate([65] * 255).usage.completion_tokens == 1
    with pytest.raises(ContextLengthError):
        s.llm.generate([65] * 256)


def test_default_max_tokens_is_what_is_left(scripted: Scripted) -> None:
    prompt = [65] * 10
    assert scripted("a" * 300).llm.generate(prompt).usage.completion_tokens == 246
    small = scripted("a" * 300, max_model_len=40).llm
    assert small.context_length == 40
    assert small.generate(prompt).usage.completion_tokens == 30
    per_token = small.config.kv_bytes_per_token(4)
    tight = scripted("a" * 300, kv_bytes=per_token * 32).llm
    assert tight.generate(prompt).usage.completion_tokens == 23, (
        "32 slots, the last token needs none"
    )
    capped = scripted("a" * 300, generation=GenerationConfig((256,), max_new_tokens=7)).llm
    assert capped.generate(prompt).usage.completion_tokens == 7
    assert capped.generate(prompt, max_tokens=9).usage.completion_tokens == 9


def test_an_engine_error_raises_for_one_and_reports_for_many(scripted: Scripted) -> None:
    s = scripted(lambda prompt: "okNAN" if "bad" in prompt else "fine")
    with pytest.raises(EngineError, match="not finite"):
        s.llm.chat("bad")
    stream = s.llm.stream("bad")
    with pytest.raises(EngineError, match="not finite"):
        for delta in stream:
            assert delta.text in ("", "o", "k")
    results = s.llm.chat_many(["good", "bad", "good"])
    assert [r.finish_reason for r in results] == ["stop", "error", "stop"]
    assert [r.text for r in results] == ["fine", "ok", "fine"]
    assert "not finite" in str(results[1].error) and results[0].error is None
    with pytest.raises(EngineError) as caught:
        s.llm.chat("bad")
    assert caught.value.code == "not_finite"
