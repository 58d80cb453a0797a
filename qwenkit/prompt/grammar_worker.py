"""The process that tries grammars before the serving process does.

    python -c '… main()' VOCABULARY    a descriptor's number; started by `qwenkit.llm.grammars`

Contract: reads the vocabulary from the file (`Vocabulary.dump`), says `{}` on standard output, then
answers each line of standard input, a constraint's `spec`, with one line of JSON: {"grammar": text}
when it compiles, takes a first token and goes on from there; else {"error": …, "remedy": …}. A job
that takes too long, too much memory or too much stack ends the process, as an alarm or the
operating system see to it, also where the parent is gone.

It tries with less memory and a smaller stack than the serving process has: what passes here, passes
there.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from typing import Any

import numpy as np

from qwenkit.errors import EngineError, QwenkitError, RequestError
from qwenkit.prompt.grammar import Grammar, Vocabulary, grammar_text

ALARM_S = 4
"""The parent's limit is shorter; this one holds where the parent is gone."""
STACK_BYTES = 4 << 20
EXTRA_BYTES = 1 << 30
"""Address space beyond what the process has once the vocabulary is loaded."""


def main() -> None:
    """Answer until standard input ends."""
    with open(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        vocabulary = Vocabulary.load(file)
    _limit_memory()
    threading.stack_size(STACK_BYTES)
    print("{}", flush=True)
    for line in sys.stdin.buffer:
        signal.alarm(ALARM_S)  # without a handler: the kernel ends the process
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=_answer_into, args=(answers, vocabulary, line))
        thread.start()
        thread.join()
        signal.alarm(0)
        print(json.dumps(answers[0]), flush=True)


def answer(vocabulary: Vocabulary, spec: bytes) -> dict[str, Any]:
    """The reply to one job."""
    try:
        text = grammar_text(spec, vocabulary.calls)
        _try(vocabulary, text)
    except QwenkitError as error:
        return {"error": error.message, "remedy": error.remedy}
    except RecursionError:
        return {"error": "The grammar is nested too deeply.", "remedy": "Make it flatter."}
    return {"grammar": text}


def _answer_into(answers: list[dict[str, Any]], vocabulary: Vocabulary, spec: bytes) -> None:
    answers.append(answer(vocabulary, spec))


def _try(vocabulary: Vocabulary, text: str) -> None:
    """Compile, and take the first mask: that is where much of the work is done."""
    matcher = Grammar(vocabulary, text).matcher()
    try:
        matcher.fill(np.empty(vocabulary.num_words, np.int32))
    except EngineError as error:
        raise RequestError(
            "No answer satisfies the grammar, or it is too complex.", "Simplify it."
        ) from error


def _limit_memory() -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return  # not Linux: the time limit alone has to do
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
