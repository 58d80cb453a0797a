"""What generating gives back: whole results, and the pieces of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qwenkit.prompt.tools import Delta, ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one call. `completion_tokens` counts all choices, end tokens included;
    `cached_tokens` are those of the prompt that did not have to be computed; `draft_tokens` were
    guessed, and `accepted_tokens` of them were right and are part of the completion.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timing:
    """Seconds from asking to the first token of any choice, and to the last of all."""

    first: float
    total: float


@dataclass(frozen=True)
class TokenProb:
    """A token with its log-probability in the model's own distribution. `bytes` may be a part of a
    character.
    """

    id: int
    bytes: bytes
    logprob: float

    @property
    def token(self) -> str:
        return self.bytes.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Logprob(TokenProb):
    """A generated token, and the most likely ones at its place in falling order."""

    top: tuple[TokenProb, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One completion. `ids` are the generated tokens without the end token; `logprobs` has one
    entry for each, and `end` is that of the end token, if there was one.
    """

    index: int
    content: str
    finish_reason: FinishReason
    ids: tuple[int, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] | None = None
    error: str | None = None
    end: Logprob | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message for the next turn's history, in OpenAI's form."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.as_message() for call in self.tool_calls]
        return message


@dataclass(frozen=True)
class Completion:
    """All choices of one prompt. The properties are those of the first choice."""

    choices: tuple[Choice, ...]
    usage: Usage
    timing: Timing = field(compare=False)

    @property
    def text(self) -> str:
        return self.choices[0].content

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[Logprob, ...] | None:
        return self.choices[0].logprobs

    @property
    def error(self) -> str | None:
        """Why the engine ended it (finish_reason "error" or "abort"), one line."""
        return self.choices[0].error


@dataclass(frozen=True)
class ChatResult(Completion):
    """A chat's answer: `content` is "" where there are only tool calls."""

    @property
    def content(self) -> str:
        return self.choices[0].content

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls

    @property
    def message(self) -> dict[str, Any]:
        return self.choices[0].message


@dataclass(frozen=True)
class StreamDelta:
    """News of choice `index`: text, or a part of a tool call, or its end.

    The last delta of a choice has its `finish_reason`; the last one of the stream also has `usage`
    and `timing`.
    """

    index: int = 0
    text: str = ""
    tool_call: Delta | None = None
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = field(default=None, compare=False)
