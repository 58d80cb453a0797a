"""The Triton bodies of the ops, for CUDA tensors without gradients.

Without a GPU they run in Triton's interpreter, which is how the tests check them: set
TRITON_INTERPRET=1 before Python starts. An install without Triton lacks them: `available()` is then
false. No op chooses them yet: they were checked in the interpreter and have not run on a GPU, where
the reference bodies serve until they are measured. Not covered: gradients, GGUF's block formats,
head dimensions above 256.
"""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None
