"""`qwenkit chat`: turns from a pipe, commands, history, Ctrl-C, tools."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenkit.cli.talk import until_ctrl_c
from qwenkit.errors import ContextLengthError


@pytest.fixture
def chat(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`chat("line", …, flags=[…])`: the lines come through a pipe."""

    def _chat(*lines: str, flags: list[str] | None = None) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli("chat", *(flags or []))

    return _chat


@pytest.fixture
def person(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`person("line", …)`: the lines are typed; an exception among them is raised at the prompt."""

    def _person(*lines: str | BaseException) -> Any:
        rest: list[str | BaseException] = [*lines, EOFError()]

        def ask(prompt: str) -> str:
            line = rest.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        stdin = io.StringIO()
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("qwenkit.cli.chat._reader", lambda: ask)
        return cli("chat")

    return _person


def said(llm: Any, turn: int = -1) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in llm.calls[turn]["messages"]]


def test_a_conversation_through_a_pipe(chat: Any, fake: Any, text: Any) -> None:
    llm = fake(text("Hi", "!"), text("Four."))
    ran = chat("Hello", "", "2 + 2?", flags=["--system", "Be kind."])
    assert (ran.code, ran.out) == (0, "Hi!\nFour.\n")
    assert said(llm) == [
        ("system", "Be kind."),
        ("user", "Hello"),
        ("assistant", "Hi!"),
        ("user", "2 + 2?"),
    ]
    assert llm.calls[0]["temperature"] == 0.7, "the checkpoint's own sampling"
    assert llm.closed == 1


def test_commands(chat: Any, fake: Any, text: Any, tmp_path: Path) -> None:
    llm = fake(text("a"), text("b"), text("c"), text("d"))
    file = tmp_path / "talk.json"
    ran = chat(
        "one", "/clear", "two", "/set temperature 0.25", "/set top-k=3", "/system New.", "three",
        "//slash", f"/save {file}", f"/save {file}l", "/set temperature", "/set", "/help",
    )  # fmt: skip
    assert ran.code == 0
    assert said(llm, 1) == [("user", "two")]
    assert said(llm, 3) == [
        ("system", "New."),
        ("user", "three"),
        ("assistant", "c"),
        ("user", "/slash"),
    ]
    assert (llm.calls[3]["temperature"], llm.calls[3]["top_k"]) == (0.25, 3)
    assert len(json.loads(file.read_text())) == 5
    (row,) = Path(f"{file}l").read_text().splitlines()
    assert json.loads(row)["messages"][-1] == {"role": "assistant", "content": "d"}
    assert "temperature = 0.25  (/set)" in ran.err and "top_p = 1.0  (the checkpoint)" in ran.err
    for name in ("/help", "/clear", "/system", "/set", "/tools", "/save", "/exit"):
        assert name in ran.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/claer", "Did you mean /clear?"),
        ("/xyz", "See /help."),
        ("/set temprature 1", "Did you mean temperature?"),
        ("/set temperature hot", "temperature is 'hot' (from /set); it must be a number"),
        ("/set model x", "cannot be set"),
        ("/save", "needs a file name"),
        ("/save /proc/x/y.json", "cannot be written"),
        ("/tools none.json", "cannot be read"),
    ],
)
def test_wrong_commands_are_one_line(chat: Any, fake: Any, line: str, expected: str) -> None:
    fake()
    ran = chat(line)
    assert ran.code == 2 and expected in ran.err and ran.err.count("\n") == 1


def test_paths_are_no_commands(chat: Any, fake: Any, text: Any) -> None:
    llm = fake(text("a file"))
    assert chat("/etc/hosts is what?", "/exit", "never sent").code == 0
    assert said(llm) == [("user", "/etc/hosts is what?")]


def test_a_failed_turn_is_forgotten_and_the_chat_goes_on(chat: Any, fake: Any, text: Any) -> None:
    llm = fake([ContextLengthError(500, 100, 512)], text("ok"))
    ran = chat("long", "short")
    assert ran.code == 1, "a script must see that a turn failed"
    assert "error: " in ran.err and "512" in ran.err and "/clear starts over" in ran.err
    assert said(llm) == [("user", "short")] and ran.out == "ok\n"


def test_a_person_talks(person: Any, fake: Any, text: Any) -> None:
    llm = fake(text("Hi"), text("cut", finish="length"))
    ran = person("hello", KeyboardInterrupt(), "  ", "/bogus", "more")
    assert ran.code == 0 and ran.out == "Hi\n\ncut\n\n"
    assert "tiny-instruct, 512 tokens of context" in ran.err
    assert "/bogus is no command" in ran.err and "ends at the token limit" in ran.err
    assert said(llm)[-1] == ("user", "more")


def test_a_person_answers_tool_calls(
    person: Any, fake: Any, text: Any, call: Any, tmp_path: Path
) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "weather"}]')
    llm = fake(call("weather", city="Ulm"), text("It rains."), call("weather", city="Rom"))
    ran = person(f"/tools {tools}", "Ulm?", "rain", "Rom?", "", "/tools off")
    assert '{"name": "weather", "arguments": {"city": "Ulm"}}\nIt rains.' in ran.out
    asked = llm.calls[1]["messages"]
    assert asked[1]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "Ulm"},
    }
    assert asked[2] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}
    assert len(llm.calls) == 3, "an empty result leaves the call unanswered"
    assert "tools: weather" in ran.err and "no tools" in ran.err


def test_ctrl_c_ends_the_answer_only(person: Any, fake: Any, text: Any) -> None:
    def ctrl_c() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    llm = fake([*text("Once", " upon")[:2], ctrl_c, *text(" a time")], text("Yes?"))
    before = signal.getsignal(signal.SIGINT)
    ran = person("a story", "hello")
    assert ran.code == 0 and ran.out == "Once upon\n\nYes?\n\n" and "(stopped)" in ran.err
    assert said(llm)[1] == ("assistant", "Once upon")
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_a_piece_is_drawn_lets_it_finish() -> None:
    closed = []

    def pieces() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    seen = []
    for piece in until_ctrl_c(pieces()):
        if piece == 3:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(piece)
    assert (seen, closed) == ([0, 1, 2, 3], [True])


def test_the_history_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from qwenkit.cli.chat import _reader

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("first\x1b\rsecond\r")
        assert _reader()("> ") == "first\nsecond"
    file = tmp_path / "qwenkit" / "history"
    assert "+first" in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


class Terminal:
    """`qwenkit chat` on a pseudo-terminal of 24 lines, its screen as the bytes that came.

    The line editor paints what has changed and moves the cursor over the rest, so the prompt need
    not appear as "> ". What it does write each time it waits for a line is "bracketed paste on".
    """

    AT_THE_PROMPT = b"\x1b[?2004h"

    def __init__(self, model: Path, home: Path, *flags: str) -> None:
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        names = {"TERM": "xterm", "XDG_DATA_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qwenkit", "chat", str(model), *flags],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **names, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._seen = b""

    def wait_for(self, words: bytes, seconds: float = 200) -> None:
        """Read until `words` have come; what came up to them is used up."""
        end = time.monotonic() + seconds
        while words not in self._seen:
            left = end - time.monotonic()
            ready = left > 0 and select.select([self._terminal], [], [], left)[0]
            news = os.read(self._terminal, 65536) if ready else b""
            assert news, f"{words!r} does not come; last: {self._seen[-500:]!r}"
            self._seen += news
            if b"\x1b[6n" in news:  # where is the cursor?
                self.type("\x1b[1;1R")
        self._seen = self._seen.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._terminal)


@pytest.mark.timeout(280)
def test_a_real_terminal(checkpoint: Path, tmp_path: Path) -> None:
    """The whole program: prompt, answer, Ctrl-C during an answer, /set, history, Ctrl-D."""
    terminal = Terminal(checkpoint, tmp_path, "--max-tokens", "8", "--temperature", "0")
    try:
        terminal.wait_for(b"512 tokens of context")
        terminal.wait_for(Terminal.AT_THE_PROMPT)
        terminal.type("hello\r")
        terminal.wait_for(b"ends at the token limit")
        terminal.wait_for(Terminal.AT_THE_PROMPT)
        terminal.type("/set max_tokens 200\r")
        terminal.wait_for(b"max_tokens = 200")
        terminal.wait_for(Terminal.AT_THE_PROMPT)
        terminal.type("\x1b[A\x1b[A\r")  # two lines up in the history: hello
        terminal.wait_for(b"\x1b[?2004l")
        terminal.wait_for(b"\x1b[2K")  # the answer is being drawn
        terminal.type("\x03")  # stops the answer, or clears the line if that was quicker
        terminal.wait_for(Terminal.AT_THE_PROMPT)
        terminal.type("\x04")
        terminal.wait_for(b"next: qwenkit run")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
    assert (tmp_path / "qwenkit" / "history").read_text().count("+hello") == 2
