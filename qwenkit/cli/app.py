"""The entry point: from words to a verb with its options, and what becomes of errors."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from qwenkit import __version__
from qwenkit.cli.overview import overview
from qwenkit.errors import QwenkitError

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
    # The options take a quarter of a second to import, and `--help` needs none of them.
    from qwenkit.cli.flags import parse
    from qwenkit.cli.verbs import find, work
    from qwenkit.options import resolve

    verb, rest = find(words)
    if verb is None:
        print(overview(words[0]))
        return 0
    cls = verb.options
    parsed = parse(cls, rest, prog=f"qwenkit {verb.words}")
    return work(verb)(resolve(cls, parsed.values, file=parsed.file))


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
