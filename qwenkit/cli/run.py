"""`qwenkit run`: one prompt, one answer. Standard output holds the answer and nothing else."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from qwenkit.cli import load as loading
from qwenkit.cli.output import hint, print_json
from qwenkit.errors import EngineError, OptionError
from qwenkit.options import RunOptions

_NO_TEMPLATE = "the prompt goes in plain ChatML (--raw completes it as it is)"


def run(options: RunOptions) -> int:
    """Answer `options.prompt`, streaming; with `json`, print one object at the end."""
    prompt = read_prompt(options.prompt)
    tools = loading.read_tools(options.tools)
    if options.raw and (tools or options.system):
        raise OptionError(
            "--raw goes without --system and --tools.", "Leave --raw out to use the template."
        )
    started = time.perf_counter()
    with loading.load(options) as llm:
        loaded = time.perf_counter()
        if not options.raw and llm.template.is_fallback:
            print(f"note: {options.model} has no chat template; {_NO_TEMPLATE}", file=sys.stderr)
        if options.raw:
            pieces = llm.stream(prompt=prompt, allow_special=True, **options.sampling())
        else:
            pieces = llm.stream(conversation(prompt, options.system), tools, **options.sampling())
        answer = Answer(echo=not options.as_json)
        for piece in pieces:
            answer.push(piece)
        answer.finish()
        if options.as_json:
            times = answer.timings(started, loaded)
            print_json({"model": options.model, **answer.to_dict(), "timings": times}, indent=None)
    if answer.finish_reason == "length":
        print("note: the answer ends at the token limit (see --max-tokens)", file=sys.stderr)
    if not options.as_json:
        hint(
            "qwenkit chat"
            if options.model == type(options)().model
            else f"qwenkit chat {options.model}"
        )
    return 0


def conversation(prompt: str, system: str | None) -> list[dict[str, Any]]:
    """The messages of a first turn."""
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": prompt}]


def read_prompt(prompt: str | None) -> str:
    """The prompt, from standard input for `-` or when text is piped in. Errors: OptionError."""
    if prompt is None and sys.stdin.isatty():
        raise OptionError("There is no prompt.", 'Write `qwenkit run -p "…"`, or pipe text in.')
    if prompt is None or prompt == "-":
        try:
            prompt = sys.stdin.read().rstrip("\n")
        except UnicodeDecodeError as error:
            raise OptionError("Standard input is not UTF-8 text.", "Convert it first.") from error
    if not prompt:
        raise OptionError("The prompt is empty.", 'Write `qwenkit run -p "…"`, or pipe text in.')
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(
            "The prompt is not valid UTF-8 text.", "Check the terminal's encoding."
        ) from error
    return prompt


class Answer:
    """Collects the pieces of a stream; `echo` prints text as it comes, tool calls as JSON lines."""

    def __init__(self, *, echo: bool) -> None:
        self.text = ""
        self.calls: list[dict[str, Any]] = []
        self.finish_reason: str | None = None
        self.prompt_tokens = self.completion_tokens = 0
        self.first = self.last = 0.0
        self._echo = echo

    def push(self, piece: Any) -> None:
        """Take one `StreamDelta`."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        if piece.text:
            self.text += piece.text
            if self._echo:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        if piece.tool_call is not None:
            self._push_call(piece.tool_call)
        self.finish_reason = piece.finish_reason or self.finish_reason
        if piece.usage is not None:
            self.prompt_tokens = piece.usage.prompt_tokens
            self.completion_tokens = piece.usage.completion_tokens

    def _push_call(self, news: Any) -> None:
        while len(self.calls) <= news.index:
            self.calls.append({"id": None, "name": None, "arguments": ""})
        call = self.calls[news.index]
        call["id"], call["name"] = news.id or call["id"], news.name or call["name"]
        call["arguments"] += news.arguments

    def finish(self) -> None:
        """Print what is left. Errors: EngineError when the engine gave the request up."""
        if self._echo:
            if self.text and not self.text.endswith("\n"):
                print()
            for call in self.calls:
                print_json(
                    {"name": call["name"], "arguments": as_json(call["arguments"])}, indent=None
                )
            sys.stdout.flush()
        if self.finish_reason == "error":
            raise EngineError("The engine gave the request up.", "Run again with --dtype float32.")

    def message(self) -> dict[str, Any]:
        """The assistant message for the history."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": as_json(call["arguments"])},
                }
                for call in self.calls
            ]
        return message

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON fields."""
        return {
            "content": self.text,
            "tool_calls": self.message().get("tool_calls", []),
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
        }

    def timings(self, started: float, loaded: float) -> dict[str, float]:
        """Seconds to load and to the first piece, and tokens a second after it."""
        spent = self.last - self.first
        speed = (self.completion_tokens - 1) / spent if spent > 0 else 0.0
        return {
            "load_s": round(loaded - started, 3),
            "first_token_s": round((self.first or loaded) - loaded, 3),
            "tokens_per_s": round(speed, 1),
        }


def as_json(text: str) -> Any:
    """Arguments as a JSON value; broken JSON stays text, for the reader to see."""
    try:
        return json.loads(text)
    except ValueError:
        return text
