"""`qwenkit run`: only the answer on standard output, whatever the answer is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwenkit.config import ModelConfig
from qwenkit.errors import ContextLengthError
from qwenkit.io.hub import ASSETS


class Pipe(io.StringIO):
    def isatty(self) -> bool:
        return False


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_the_answer_is_printed(
    cli: Callable[..., Any], fake: Callable[..., Any], text: Any
) -> None:
    llm = fake(text("It is ", "42", "."))
    ran = cli("run", "-p", "What?", "--system", "Be short.", "--temperature", "0")
    assert (ran.code, ran.out, ran.err) == (0, "It is 42.\n", "")
    assert llm.calls == [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "What?"},
            ],
            "tools": None,
            "temperature": 0.0,
        }
    ]
    assert llm.closed == 1


def test_a_model_without_a_template_is_mentioned(
    cli: Callable[..., Any], fake: Callable[..., Any], text: Any
) -> None:
    fake(text("ok"), text("ok")).template = SimpleNamespace(is_fallback=True)
    ran = cli("run", "-p", "x")
    assert (ran.code, ran.out) == (0, "ok\n")
    assert ran.err.startswith("note: tiny-instruct has no chat template;") and "--raw" in ran.err
    assert cli("run", "--raw", "-p", "x").err == ""


def test_json(cli: Callable[..., Any], fake: Callable[..., Any], text: Any) -> None:
    fake(text("早", "上好", finish="length"))
    ran = cli("run", "-p", "x", "--json", "--max-tokens", "2")
    value = json.loads(ran.out)
    assert ran.out.count("\n") == 1 and "早上好" in ran.out
    assert (value["model"], value["content"]) == ("tiny-instruct", "早上好")
    assert value["finish_reason"] == "length" and "token limit" in ran.err
    assert value["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert set(value["timings"]) == {"load_s", "first_token_s", "tokens_per_s"}


def test_a_tool_call(
    cli: Callable[..., Any], fake: Callable[..., Any], call: Any, tmp_path: Path
) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps({"name": "weather", "parameters": {}}))
    llm = fake(call("weather", city="北京"), call("weather", city="北京"))
    ran = cli("run", "-p", "x", "--tools", str(tools))
    assert json.loads(ran.out) == {"name": "weather", "arguments": {"city": "北京"}}
    assert llm.calls[0]["tools"] == [
        {"type": "function", "function": {"name": "weather", "parameters": {}}}
    ]
    value = json.loads(cli("run", "-p", "x", "--json", "--tools", str(tools)).out)
    assert value["tool_calls"][0]["function"]["arguments"] == {"city": "北京"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "no list of tools"),
        ("[1]", "no list of tools"),
        ('[{"type": "function", "function": {}}]', "has no name"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_bad_tools(cli: Callable[..., Any], tmp_path: Path, content: str, expected: str) -> None:
    tools = tmp_path / "tools.json"
    tools.write_bytes(content.encode("utf-8", "surrogateescape"))
    ran = cli("run", "-p", "x", "--tools", str(tools))
    assert ran.code == 2 and expected in ran.err


def test_raw_prompts_go_as_they_are(
    cli: Callable[..., Any], fake: Callable[..., Any], text: Any
) -> None:
    llm = fake(text("    return 1\n"))
    ran = cli("run", "tiny", "--raw", "-p", "<|fim_prefix|>def f():", "--stop", "a", "--stop", "b")
    assert ran.out == "    return 1\n"
    (asked,) = llm.calls
    assert asked["prompt"] == "<|fim_prefix|>def f():" and asked["allow_special"] is True
    assert asked["stop"] == ["a", "b"]


@pytest.mark.parametrize("words", [[], ["-p", "-"]])
def test_the_prompt_may_be_piped_in(
    cli: Callable[..., Any],
    fake: Callable[..., Any],
    text: Any,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    llm = fake(text("ok"))
    monkeypatch.setattr("sys.stdin", Pipe("two\nlines\n"))
    assert cli("run", *words).code == 0
    assert llm.calls[0]["messages"][0]["content"] == "two\nlines"


def test_no_prompt_at_a_terminal(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(""))
    ran = cli("run")
    assert ran.code == 2 and "There is no prompt." in ran.err


@pytest.mark.parametrize("prompt", ["-5 + 3?", "--help me", "-", "--json"])
def test_prompts_that_look_like_flags(
    cli: Callable[..., Any],
    fake: Callable[..., Any],
    text: Any,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
) -> None:
    llm = fake(text("ok"))
    monkeypatch.setattr("sys.stdin", Pipe("-"))
    ran = cli(
        "run",
        f"--prompt={prompt}" if prompt == "--json" else "-p",
        *([prompt] if prompt != "--json" else []),
    )
    assert ran.code == 0 and llm.calls[0]["messages"][0]["content"] == prompt


def test_errors_of_a_request(cli: Callable[..., Any], fake: Callable[..., Any], text: Any) -> None:
    fake([ContextLengthError(500, 100, 512)])
    ran = cli("run", "-p", "x")
    assert ran.code == 1 and "500" in ran.err and ran.out == ""
    fake(text("par", finish="error"))
    ran = cli("run", "-p", "x")
    assert ran.code == 1 and ran.out == "par\n" and "gave the request up" in ran.err


def test_a_real_model_from_a_folder(cli: Callable[..., Any], checkpoint: Path) -> None:
    words = ["run", str(checkpoint), "-p", "hi", "--max-tokens", "4", "--json", "--threads", "1"]
    first, second = json.loads(cli(*words).out), json.loads(cli(*words).out)
    assert first["usage"]["completion_tokens"] <= 4
    assert first["content"] == second["content"]
    ran = cli("run", str(checkpoint), "-p", "hi", "--max-tokens", "999")
    assert ran.code == 1 and "999" in ran.err and "512" in ran.err
    ran = cli("run", str(checkpoint), "-p", "hi", "--max-model-len", "999")
    assert ran.code == 2 and "max_model_len is 999" in ran.err and "512" in ran.err
    assert "It can be auto, cpu" in cli("run", str(checkpoint), "-p", "hi", "--device", "tpu").err


def test_an_adapter_is_named(cli: Callable[..., Any], fake: Callable[..., Any], text: Any) -> None:
    llm = fake(text("ok"))
    assert cli("run", "-p", "x", "--lora", "folder").code == 0
    assert llm.calls[0]["adapter"] == "lora"


def test_an_adapter_is_loaded(
    cli: Callable[..., Any], tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    config = ModelConfig.from_dir(ASSETS / "tiny-instruct")
    folder = write_adapter(tmp_path / "adapter", config, size=0.2)
    ask = ("run", "-p", "What is 12 + 30?", "--temperature", "0", "--max-tokens", "16")
    plain, adapted = cli(*ask), cli(*ask, "--lora", str(folder))
    assert (plain.code, adapted.code) == (0, 0)
    assert plain.out != adapted.out
    wrong = cli(*ask, "--lora", str(tmp_path))
    assert wrong.code == 1 and wrong.err.count("\n") == 1
    assert "has no adapter_config.json" in wrong.err
