"""The process that tries grammars before the serving process does.

    python -c '… main()' N    N: the descriptor of a vocabulary; started by `qwenkit.llm.grammars`

Contract: reads the vocabulary (`Vocabulary.dump`), says `{}` on standard output, then answers each
line of standard input, a constraint's `spec`, with one line of JSON: {"grammar": text, "bytes":
what it takes in memory} when it compiles and a few tokens can be written with it, else {"error": …,
"remedy": …, "param": …}. A job that takes too long, too much memory or too much stack ends the
process; the operating system sees to it, also where the parent is gone.

It tries with less memory and a smaller stack than the serving process has: what passes here, passes
there.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import sys
import threading
from typing import Any

import numpy as np

from qwenkit.errors import EngineError, QwenkitError, RequestError
from qwenkit.prompt.grammar import Grammar, Vocabulary, grammar_text

MOST_CPU_S = 4.0
"""The parent's limit is shorter; this one holds where the parent is gone."""
STACK_BYTES = 4 << 20
EXTRA_BYTES = 1 << 30
"""Address space beyond what the process has once the vocabulary is loaded."""
TRIED_TOKENS = 16
LEAST_BYTES = 1 << 17
"""What a small grammar takes; also said where the allocator cannot be asked."""


def main() -> None:
    """Answer until standard input ends."""
    with open(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        vocabulary = Vocabulary.load(file)
    _limit_memory()
    os.nice(5)  # those who wait for tokens go first
    threading.stack_size(STACK_BYTES)
    print("{}", flush=True)
    before = _bytes_in_use()
    for line in sys.stdin.buffer:
        # Without a handler, the kernel ends the process.
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=_answer_into, args=(answers, vocabulary, line, before))
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answers[0]), flush=True)
        before = _bytes_in_use()


def answer(vocabulary: Vocabulary, spec: str | bytes, bytes_before: int) -> dict[str, Any]:
    """The reply to one job."""
    try:
        text = grammar_text(spec, vocabulary.calls)
        grammar = Grammar(vocabulary, text)
        size = max(_bytes_in_use() - bytes_before, LEAST_BYTES)
        _try(grammar)
    except QwenkitError as error:
        param = getattr(error, "param", None)
        return {"error": error.message, "remedy": error.remedy, "param": param}
    except RecursionError:
        return {"error": "The grammar is nested too deeply.", "remedy": "Make it flatter."}
    return {"grammar": text, "bytes": size}


def _answer_into(answers: list[dict[str, Any]], *job: Any) -> None:
    answers.append(answer(*job))


def _try(grammar: Grammar) -> None:
    """Write a little at random: much of the work is only done then, and dead ends show."""
    vocabulary, matcher, draw = grammar.vocabulary, grammar.matcher(), random.Random(0)
    words = np.empty(vocabulary.num_words, np.int32)
    for _ in range(TRIED_TOKENS):
        try:
            matcher.fill(words)
        except EngineError as error:
            raise RequestError(
                "No answer satisfies the grammar, or it is too complex.", "Simplify it."
            ) from error
        mask = words.view(np.uint32)
        for end in vocabulary.ends:
            mask[end // 32] &= ~np.uint32(1 << end % 32)
        places = np.flatnonzero(mask)
        if not len(places):
            break
        place = int(places[draw.randrange(len(places))])
        word = int(mask[place])
        matcher.accept(32 * place + draw.choice([i for i in range(32) if word >> i & 1]))


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def _bytes_in_use() -> int:
    """What the C allocator has handed out; 0 where nobody can tell."""
    info = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if info is None:
        return 0
    info.restype = _MallocInfo
    found = info()
    return int(found.uordblks + found.hblkhd)


def _limit_memory() -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return  # not Linux: the time limit alone has to do
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
