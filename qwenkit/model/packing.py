"""What a weight becomes on its way from the file into the model: plain, packed, or packed for the
kernels.

A matrix that is packed while loading is never whole in memory in another form: its rows are read,
rounded and put in order some at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.errors import CheckpointError, OptionError
from qwenkit.model.linear import Linear
from qwenkit.model.qwen import Qwen
from qwenkit.model.weights import Weights
from qwenkit.ops import KernelWeight, Packed

QUANTIZE = {"int4": 64, "int8": 128}
"""What a checkpoint can be packed to while loading → inputs that share a scale."""
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Packing:
    """`quantize`, `check_finite` and `prepack` of `load_model`.

    Errors of the constructor: OptionError for an unknown `quantize`.
    """

    quantize: str | None = None
    check_finite: bool = False
    prepack: bool = False

    def __post_init__(self) -> None:
        if self.quantize is not None and self.quantize not in QUANTIZE:
            raise OptionError(
                f"quantize is {self.quantize!r}.",
                f"It can be {' or '.join(QUANTIZE)}, or left out.",
            )


def kind_of(
    model: Qwen, weights: Weights, name: str, dtype: torch.dtype, quantize: str | None
) -> str | None:
    """The format to which `quantize` packs a tensor; None where it stays as the file has it.

    Errors: OptionError when that is packed already.
    """
    if quantize is None:
        return None
    packed = weights.packed(name)
    if packed is not None:
        raise OptionError(
            f"{weights.path} is packed already ({name} is {packed}).", "Leave quantize out."
        )
    owner = name.rpartition(".")[0]
    tied = model.lm_head is None
    if name == EMBEDDING and not tied:
        first = weights.read(name, slice(0, 1))
        assert isinstance(first, Tensor)
        kept = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(first.dtype)
        return kept if dtype.itemsize > first.element_size() else None
    if name == EMBEDDING or owner == "lm_head":
        return "int8"
    router = owner.endswith((".gate", ".shared_expert_gate"))
    matrix = name.endswith(".weight") and isinstance(model.get_submodule(owner), Linear)
    return quantize if matrix and not router else None


def read_weight(
    weights: Weights, name: str, kind: str | None, device: torch.device, how: Packing
) -> Tensor | Packed | KernelWeight:
    """A tensor on its device, packed to `kind`, or as the file has it without one.

    Errors: CheckpointError for nan and inf where they are looked for; those of reading.
    """
    for_kernels = how.prepack and device.type == "cpu"
    if kind is None:
        found = _read(weights, name, None, how)
        ready: Tensor | Packed | KernelWeight = found
        if isinstance(found, Packed):
            ready = ops.prepack(found) if for_kernels else found.to(device)
        if isinstance(found, Tensor) or ready is not found:  # else it is the mapped file itself
            weights.release(name)
        return ready

    def packed(rows: slice | None) -> Packed:
        plain = _read(weights, name, rows, how)
        assert isinstance(plain, Tensor) and kind is not None
        return ops.quantize(plain, kind, group_size=QUANTIZE.get(kind))

    out, width = weights.shapes()[name]
    made = ops.prepack_rows((out, width), packed) if for_kernels else None
    result = packed(None).to(device) if made is None else made
    weights.release(name)
    return result


def _read(weights: Weights, name: str, rows: slice | None, how: Packing) -> Tensor | Packed:
    found = weights.read(name, rows)
    if how.check_finite and not _finite(found):
        raise CheckpointError(f"{weights.path}: {name} holds nan or inf.", "Fetch the model again.")
    return found


def _finite(found: Tensor | Packed) -> bool:
    weight = ops.dequantize(found) if isinstance(found, Packed) else found
    return bool(weight.isfinite().all())
