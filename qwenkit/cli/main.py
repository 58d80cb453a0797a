"""The entry point: which verb, its options, and what becomes of errors.

A verb is a row of `VERBS`: its options class, and the function `module:name` that does it, imported
only then. The function takes the options and returns an exit code.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from qwenkit import __version__
from qwenkit.cli.flags import parse
from qwenkit.errors import OptionError, QwenkitError
from qwenkit.options import VERBS as OPTIONS
from qwenkit.options import Options, env_name, resolve, suggest

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141
_DISK = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EACCES: "Check the permissions.",
    errno.EPERM: "Check the permissions.",
    errno.EROFS: "Write to another place.",
}


@dataclass(frozen=True)
class Verb:
    """`words` as typed, and where its work is done."""

    words: str
    target: str
    group: str

    @property
    def options(self) -> type[Options]:
        return OPTIONS[self.words.split()[-1]]


VERBS = (
    Verb("chat", "chat:chat", "ask"),
    Verb("run", "run:run", "ask"),
    Verb("pull", "models:pull", "models"),
    Verb("list", "models:show_list", "models"),
    Verb("show", "show:show", "models"),
    Verb("family", "plan:family", "models"),
    Verb("plan", "plan:plan", "models"),
    Verb("train tokenizer", "train:tokenizer", "train and measure"),
    Verb("train pretrain", "train:pretrain", "train and measure"),
    Verb("train sft", "train:sft", "train and measure"),
    Verb("eval", "train:evaluate", "train and measure"),
    Verb("doctor", "doctor:doctor", "this installation"),
    Verb("config-schema", "schema:schema", "this installation"),
)
_ALIASES = {"ls": "list"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. Only the SystemExit of `--help` gets out."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except QwenkitError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_NO_READER
    except Exception as error:
        known = _as_known(error)
        return _report(known) if known else _report_bug(error, words)


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"qwenkit {__version__}")
        return 0
    words[0] = _ALIASES.get(words[0], words[0])
    verb, rest = _find(words)
    if verb is None:
        print(overview("train"))
        return 0
    cls = verb.options
    parsed = parse(cls, rest, prog=f"qwenkit {verb.words}")
    options = resolve(cls, parsed.values, file=parsed.file)
    module, name = verb.target.split(":")
    code: int = getattr(importlib.import_module(f"qwenkit.cli.{module}"), name)(options)
    return code


def _find(words: list[str]) -> tuple[Verb | None, list[str]]:
    """The verb and what follows it; (None, …) asks for the list of `train`. Errors: OptionError."""
    table = {verb.words: verb for verb in VERBS}
    if words[0] == "train":
        kinds = [words[len("train ") :] for words in table if words.startswith("train ")]
        if words[1:2] in ([], ["-h"], ["--help"]):
            return None, []
        found = table.get(" ".join(words[:2]))
        if found is None:
            near = suggest(words[1], kinds)
            hint = f"Did you mean {near}?" if near else f"There are {', '.join(kinds)}."
            raise OptionError(f"`qwenkit train {words[1]}` does not exist.", hint)
        return found, words[2:]
    if words[0] in table:
        return table[words[0]], words[1:]
    near = suggest(words[0], [*table, "train", "help"])
    hint = f"Did you mean {near}?" if near else "See `qwenkit --help`."
    raise OptionError(f"{words[0]!r} is not a verb of qwenkit.", hint)


def overview(only: str | None = None) -> str:
    """The text of `qwenkit --help`, made from the options classes; `only`: verbs that start so."""
    verbs = [verb for verb in VERBS if only is None or verb.words.startswith(only)]
    width = max(len(verb.words) for verb in VERBS) + 4
    usage = "VERB [MODEL] [options]" if only is None else f"{only} VERB [CONFIG.yaml] [options]"
    lines = [f"usage: qwenkit {usage}"]
    if only is None:
        lines += [
            "",
            "The Qwen2.5 open models, from the checkpoint file to the answer. Without a model",
            "name, the small one that comes with qwenkit is used; it needs no network.",
        ]
    lines += [] if only is None else [""]
    group = ""
    for verb in verbs:
        if only is None and verb.group != group:
            group = verb.group
            lines += ["", f"{group}:"]
        lines.append(f"  {verb.words:<{width}}{verb.options.summary()}")
    lines += [
        "",
        "Each verb has `--help`. Every option can also be set in a YAML file (--config)",
        f"or in the environment (--top-k is {env_name('top_k')}). Answers go to standard",
        "output, everything else to standard error. Exit codes: 0 done, 1 failed,",
        "2 wrong option, 70 a bug in qwenkit, 130 interrupted.",
    ]
    if only is None:
        lines += ["", 'Start with:  qwenkit run -p "What can you do?"']
    return "\n".join(lines)


def _report(error: QwenkitError) -> int:
    if os.environ.get("QWENKIT_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(f"{_red('error:')} {error}", file=sys.stderr)
    return error.exit_code


def _report_bug(error: Exception, words: list[str]) -> int:
    """Keep the traceback in a file, and ask for it in one line."""
    import tempfile  # costs 10 ms of --help

    if os.environ.get("QWENKIT_TRACEBACK") == "1":
        traceback.print_exception(error)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="qwenkit-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(f"qwenkit {__version__}, Python {sys.version}\nverb: {words[:1]}\n\n{text}")
        where = f"Please report it with {file.name}"
    except OSError:
        where = "Please report it with what QWENKIT_TRACEBACK=1 shows"
    print(f"{_red('error:')} this is a bug in qwenkit: {what[:300]}. {where}.", file=sys.stderr)
    return EXIT_BUG


def _as_known(error: Exception) -> QwenkitError | None:
    """Faults of the machine rather than of qwenkit: no memory, no disk, no permission."""
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch
        or (isinstance(error, RuntimeError) and "can't allocate memory" in text)
    ):
        return QwenkitError("There is not enough memory.", "`qwenkit plan MODEL` tells what fits.")
    if isinstance(error, OSError) and error.errno in _DISK:
        place = f"{error.filename}: " if error.filename else ""
        return QwenkitError(f"{place}{error.strerror}.", _DISK[error.errno])
    return None


def _red(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or not sys.stderr.isatty()
    return text if plain else f"\033[31m{text}\033[0m"


def _silence_stdout() -> None:
    """Nobody reads: keep the interpreter from complaining when it flushes at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
