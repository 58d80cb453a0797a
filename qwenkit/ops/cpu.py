"""The C++ bodies of the ops, for tensors on the CPU and without gradients.

The extension module `_cpu` (csrc/) takes raw pointers, so it needs no PyTorch headers and works
with any version. It picks the best instruction set of the machine when it is imported;
`QWENKIT_ISA` forces a plainer one ("portable", "avx2", "avx512"). An install without a compiler
lacks it: `available()` is then false, and `unavailable_reason()` says why.

Not covered: dtypes outside `DTYPES`, gradients, threads (an op runs on the calling thread, with the
GIL released).
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from qwenkit.errors import OptionError

try:
    import qwenkit.ops._cpu as _cpu
except ModuleNotFoundError:
    _import_error: str | None = (
        "this install has none (no compiler, or no Python headers, when it was made)"
    )
except ImportError as error:
    _import_error = " ".join(str(error).split())
else:
    _import_error = None

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def available() -> bool:
    """Whether the extension module is built and loads. The first call applies QWENKIT_ISA.

    Errors: OptionError when QWENKIT_ISA names an instruction set that this machine or build lacks.
    """
    if _import_error is not None:
        return False
    wanted = os.environ.get("QWENKIT_ISA", "")
    if wanted:
        if wanted not in _cpu.instruction_sets():
            raise OptionError(
                f"QWENKIT_ISA is {wanted!r}.",
                f"Here it can be: {', '.join(_cpu.instruction_sets())}.",
            )
        _cpu.use_instruction_set(wanted)
    return True


def unavailable_reason() -> str | None:
    """Why `available()` is false, in one line; None when it is true."""
    return _import_error


def instruction_set() -> str | None:
    """The instruction set in use: "avx512", "avx2" or "portable"; None without the extension."""
    return _cpu.instruction_set() if available() else None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension: x (…, C), weight (C), both of one dtype of `DTYPES`.

    Returns a new tensor like x, contiguous; no gradient flows through it. A view that is not
    contiguous is copied first.
    """
    assert x.dtype in DTYPES and weight.dtype == x.dtype, (x.dtype, weight.dtype)
    assert weight.shape == x.shape[-1:], (weight.shape, x.shape)
    assert x.device.type == weight.device.type == "cpu", (x.device, weight.device)
    x, weight = x.detach().contiguous(), weight.detach().contiguous()
    out = torch.empty_like(x)
    cols = x.shape[-1]
    rows = x.numel() // cols if cols else 0
    _cpu.rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, cols, eps, DTYPES[x.dtype])
    return out
