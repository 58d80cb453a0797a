"""A scripted LLM, a runner of command lines, and a small checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwenkit.cli import main
from qwenkit.config import GenerationConfig, ModelConfig
from qwenkit.llm.results import StreamDelta, Usage
from qwenkit.prompt.stream import Delta as ToolCallDelta

Script = list[StreamDelta | BaseException | Callable[[], None]]


def text_script(*pieces: str, finish: str = "stop") -> Script:
    """An answer in pieces."""
    news: Script = [StreamDelta(text=piece) for piece in pieces]
    usage = Usage(prompt_tokens=7, completion_tokens=len(pieces))
    return [*news, StreamDelta(finish_reason=finish, usage=usage)]  # type: ignore[arg-type]


def call_script(name: str, **arguments: Any) -> Script:
    """An answer that is one tool call."""
    news = [
        ToolCallDelta(index=0, id="call_1", name=name),
        ToolCallDelta(index=0, arguments=json.dumps(arguments)),
    ]
    last = StreamDelta(finish_reason="tool_calls", usage=Usage(9, 5))
    return [*(StreamDelta(tool_call=piece) for piece in news), last]


@dataclass
class FakeLLM:
    """Plays one script for each `stream` and keeps what it was asked."""

    scripts: list[Script]
    calls: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0
    aborted: int = 0
    context_length: int = 512
    adapters: Any = field(default_factory=dict)
    template: Any = field(default_factory=lambda: SimpleNamespace(is_fallback=False))
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(do_sample=True, temperature=0.7, top_k=20)
    )

    def stream(self, messages: Any = None, tools: Any = None, **more: Any) -> Iterator[StreamDelta]:
        self.calls.append({"messages": messages, "tools": tools, **more})
        return self._play(self.scripts.pop(0))

    def _play(self, script: Script) -> Iterator[StreamDelta]:
        try:
            for step in script:
                if isinstance(step, StreamDelta):
                    yield step
                elif isinstance(step, BaseException):
                    raise step
                else:
                    step()
        except GeneratorExit:
            self.aborted += 1
            raise

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeLLM]:
    """`fake(script, …)` puts a scripted model in the place of the real one."""

    def _fake(*scripts: Script) -> FakeLLM:
        llm = FakeLLM(list(scripts))
        monkeypatch.setattr("qwenkit.cli.load.load", lambda options: llm)
        return llm

    return _fake


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Ran]:
    """Run one command line in this process, with empty caches and no QWENKIT_ variables."""
    for name in ("HF_HOME", "MODELSCOPE_CACHE", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "QWENKIT_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")

    def _cli(*words: str) -> Ran:
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return _cli


CONFIG = ModelConfig(
    vocab_size=384,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    eos_token_id=258,
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a byte tokenizer, laid out like a published one."""
    import torch

    from qwenkit.model.load import init_model, save_model
    from qwenkit.train.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "small"
    train_tokenizer(["hello"], 256, folder, model_max_length=512)
    save_model(init_model(CONFIG, 0, torch.float32), folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n", encoding="utf-8")
    return folder


@pytest.fixture
def text() -> Callable[..., Script]:
    """`text("piece", …, finish="stop")`: the script of an answer."""
    return text_script


@pytest.fixture
def call() -> Callable[..., Script]:
    """`call("name", key=value)`: the script of a tool call."""
    return call_script
