"""Verbs, help, exit codes, and the one line that each mistake gets."""

from __future__ import annotations

import errno
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenkit.cli.flags import build_parser
from qwenkit.cli.overview import VERBS, Verb, overview
from qwenkit.cli.verbs import work
from qwenkit.errors import QwenkitError, TrainInterrupted

FROZEN = Path(__file__).parents[1] / "cli_options.txt"
QWENKIT = [sys.executable, "-m", "qwenkit"]


def command(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    more = {
        "capture_output": True,
        "text": True,
        "timeout": 120,
        "stdin": subprocess.DEVNULL,
        **more,
    }
    return subprocess.run([*QWENKIT, *words], **more)


def listing() -> str:
    """Every verb with every flag, one line each."""
    lines = []
    for verb in VERBS:
        parser = build_parser(verb.options, prog=verb.words)
        for action in parser._actions:
            names = "|".join(action.option_strings) or f"[{action.metavar}]"
            value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar}"
            lines.append(f"{verb.words} {names}{value}")
    return "\n".join(lines) + "\n"


def test_the_options_are_those_of_the_checked_in_list() -> None:
    """Flags are a promise. A wanted change is written down with:

    python -c "import runpy; m = runpy.run_path('tests/cli/test_app.py');
    m['FROZEN'].write_text(m['listing']())"
    """
    assert listing() == FROZEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", VERBS, ids=[verb.words for verb in VERBS])
def test_the_list_of_verbs_has_the_summaries_of_their_options(verb: Verb) -> None:
    assert verb.summary == verb.options.summary()


def test_help_is_quick_and_fits_a_terminal(cli: Callable[..., Any]) -> None:
    ran = cli("--help")
    assert ran.code == 0 and ran.err == ""
    assert max(map(len, ran.out.splitlines())) <= 80
    for verb in VERBS:
        assert verb.options.summary() in ran.out
        one = cli(*verb.words.split(), "--help")
        assert one.code == 0 and one.out.startswith(f"usage: qwenkit {verb.words} ")
        assert max(map(len, one.out.splitlines())) <= 80
        assert callable(work(verb))
    assert cli("help", "run").out == cli("run", "--help").out
    assert cli().out == ran.out == overview() + "\n"


def test_help_takes_less_than_a_third_of_a_second() -> None:
    """Processor time, which other programs on the machine do not lengthen; 0.14 s when written."""
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(spent) < 0.3, spent


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["rum"], 2, "'rum' is not a verb of qwenkit. Did you mean run?"),
        (["train", "stf"], 2, "Did you mean sft?"),
        (["run", "--temprature", "1"], 2, "Did you mean --temperature?"),
        (["run", "--top_k=x", "-p", "hi"], 2, "top_k is 'x' (from --top-k)"),
        (["run", "tiny", "hi"], 2, '-p "your prompt"'),
        (["run", "--config", "none.yaml", "-p", "x"], 2, "none.yaml cannot be read"),
        (["run", "no such model", "-p", "hi"], 1, "org/name"),
        (["run", "elephant", "-p", "hi"], 1, "Built in: tiny and tiny-instruct."),
        (["run", "--model", "tiny", "-p", "hi"], 2, "Write it without: `qwenkit run MODEL`."),
        (["config-schema", "train", "stf"], 2, "Did you mean sft?"),
        (["run", "Qwen/Qwen2.5-0.5B-Instruct", "-p", "hi"], 1, "HF_HUB_OFFLINE"),
        (["run", "-p"], 2, "expected one argument"),
        (["run", "-p", ""], 2, "The prompt is empty."),
        (["run", "--raw", "--system", "s", "-p", "x"], 2, "--raw goes without"),
        (["pull"], 2, "needs model"),
        (["list", "x"], 2, "one word too many"),
        (["train", "sft"], 2, "needs output_dir"),
        (["config-schema", "rnu"], 2, "Did you mean run?"),
        (["plan", "Qwen2.5-7B-Instuct"], 1, "Did you mean Qwen/Qwen2.5-7B-Instruct?"),
        (["plan", "Qwen2.5-7B", "--max-model-len", "999999"], 2, "holds 131072 tokens"),
        (["plan", "Qwen2.5-7B", "--memory", "much"], 2, "is not a size of memory"),
        (["show", "a/b"], 1, "`qwenkit pull a/b` fetches it."),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    cli: Callable[..., Any], words: list[str], code: int, expected: str
) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert expected in ran.err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (QwenkitError("Broken.", "Mend it."), 1, "error: Broken. Mend it."),
        (TrainInterrupted(15, 3, "runs/x"), 143, "after step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            "qwenkit plan",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "/x/y: No space left"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_becomes_of_errors(
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    def fails(options: object) -> int:
        raise error

    monkeypatch.setattr("qwenkit.cli.app._silence_stdout", lambda: None)
    monkeypatch.setattr("qwenkit.cli.models.show_list", fails)
    ran = cli("ls")
    assert ran.code == code and expected in ran.err
    assert ran.err.strip().count("\n") == 0


def test_a_bug_keeps_its_traceback_in_a_file(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(options: object) -> int:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("qwenkit.cli.models.show_list", fails)
    ran = cli("list")
    assert ran.code == 70 and ran.err.count("\n") == 1
    assert "this is a bug in qwenkit: ZeroDivisionError: division by zero. Please report" in ran.err
    (kept,) = tmp_path.glob("qwenkit-*.txt")
    assert str(kept) in ran.err and "Traceback" in kept.read_text()


def test_the_traceback_can_be_asked_for() -> None:
    plain = command("run", "--top-k", "x", "-p", "a")
    asked = command("run", "--top-k", "x", "-p", "a", env={**os.environ, "QWENKIT_TRACEBACK": "1"})
    assert (plain.returncode, asked.returncode) == (2, 2)
    assert "Traceback" not in plain.stderr and "Traceback" in asked.stderr


def test_options_from_everywhere(
    cli: Callable[..., Any],
    fake: Callable[..., Any],
    text: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("temperature: 0.5\ntop_k: 5\nprompt: from the file\n")
    monkeypatch.setenv("QWENKIT_TOP_K", "6")
    llm = fake(text("ok"))
    assert cli("run", "--config", str(file), "--temperature=0.25", "--max_tokens", "9").code == 0
    (asked,) = llm.calls
    assert asked["messages"] == [{"role": "user", "content": "from the file"}]
    assert (asked["temperature"], asked["top_k"], asked["max_tokens"]) == (0.25, 6, 9)


def test_the_schema_is_printed(cli: Callable[..., Any]) -> None:
    assert json.loads(cli("config-schema", "sft").out)["title"] == "qwenkit sft"
    assert cli("config-schema", "train", "sft").out == cli("config-schema", "sft").out
    assert "pretrain" in json.loads(cli("config-schema").out)["properties"]


def test_nobody_reads_the_output() -> None:
    process = subprocess.Popen(
        [*QWENKIT, "config-schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), errors) == (141, "")


def test_colours_only_where_wanted() -> None:
    ran = command("family", env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert ran.returncode == 0 and "\033[3" not in ran.stdout
