"""The command line: `qwenkit VERB [options]`.

Knows every application and imports each one only when it is asked for.

Answers go to standard output; progress, hints and errors go to standard error. Exit codes: 0 done,
1 failed, 2 a wrong option, 70 a bug in qwenkit, 130 interrupted, 141 nobody read the output. A
user's mistake is one line `error: …`; QWENKIT_TRACEBACK=1 shows where it was raised.
"""

from qwenkit.cli.app import main

__all__ = ["main"]
