"""The Triton bodies of the ops, for CUDA tensors without gradients.

Without a GPU they run in Triton's interpreter, which is how the tests check them: set
TRITON_INTERPRET=1 before Python starts, and QWENKIT_OPS=triton to have them chosen. So far they
have been checked in the interpreter alone and have run on no GPU. An install without Triton lacks
them: `available()` is then false. Not covered: gradients, GGUF's block formats, groups that no
power of two from 32 on divides, head dimensions above 256.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "available",
    "interpreted",
    "paged_attention",
    "qlinear",
    "rms_norm",
    "rope",
    "store_kv",
    "swiglu",
    "takes",
    "takes_weight",
    "unavailable_reason",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
_import_error: str | None = "this PyTorch has no CUDA, and QWENKIT_OPS is not triton"

# Importing Triton takes a while; without a GPU it serves only whoever asks for it.
if torch.version.cuda or torch.version.hip or os.environ.get("QWENKIT_OPS") == "triton":
    try:
        import triton

        from qwenkit.ops.triton.attention import paged_attention
        from qwenkit.ops.triton.elementwise import rms_norm, rope, store_kv, swiglu
        from qwenkit.ops.triton.linear import qlinear, takes_weight
    except ImportError as error:
        _import_error = " ".join(str(error).split())
    else:
        _import_error = None


def available() -> bool:
    """Whether Triton is there and was asked for, by a GPU or by QWENKIT_OPS."""
    return _import_error is None


def unavailable_reason() -> str | None:
    """Why `available()` is false, in one line; None when it is true."""
    return _import_error


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which takes tensors on the CPU."""
    return available() and bool(triton.knobs.runtime.interpret)


def takes(*tensors: Tensor) -> bool:
    """Whether the bodies compute on these tensors: all on one device, dtypes of `DTYPES`."""
    device = tensors[0].device
    return all(x.device == device and x.dtype in DTYPES for x in tensors)
