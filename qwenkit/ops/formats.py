"""Packed weights: one table of formats; quantising, and exact de-quantising by definition.

    packed = quantize(weight, "int4", group_size=32)
    weight = dequantize(packed)                          # float32 (out, in)

A `Packed` is what a file holds and what kernels read:

- int4 and int8 have `codes`, `scales`, perhaps `zeros`, as `integers.py` says; and perhaps `order`,
  int64 (in): the stored columns are a permutation of the inputs, y = stored · x[order] (GPTQ's
  activation order). `dequantize` undoes it.
- GGUF's types have `blocks` alone, uint8 (out, bytes of a row): the file's own bytes, as
  `gguf_blocks.py` reads them.

Not covered: methods that look at activations; they produce the same `Packed`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.errors import OptionError
from qwenkit.ops.gguf_blocks import TYPES
from qwenkit.ops.integers import (
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
)

_ROWS_AT_ONCE = 1 << 21
"""Numbers that a quantiser takes at once: bounds its working memory to some tens of MB."""


@dataclass(frozen=True)
class Format:
    """`block`: numbers that share a scale by the format itself, 0 where the group is free.
    `block_bytes`: bytes of a block. `group_size`: the default, 0 for one group for each row.
    """

    block: int
    block_bytes: int
    group_size: int


FORMATS: dict[str, Format] = {
    "int4": Format(0, 0, 128),
    "int8": Format(0, 0, 128),
    **{name: Format(kind.block, kind.block_bytes, kind.block) for name, kind in TYPES.items()},
}


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight (out, in) in a packed format. Two are equal only if they are the same object.

    Shapes and types of the tensors are asserted here, so that kernels may take raw pointers.
    """

    format: str
    shape: tuple[int, int]
    tensors: dict[str, Tensor]
    group_size: int

    def __post_init__(self) -> None:
        _check(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str) -> Packed:
        """The same weight on another device; itself if it is there."""
        if self.device == torch.device(device):
            return self
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Packed(self.format, self.shape, moved, self.group_size)

    def rows(self, index: Tensor | slice) -> Packed:
        """Some of the outputs: a slice is a view, an index tensor (M) a copy."""
        picked = {
            name: tensor if name == "order" else tensor[index]
            for name, tensor in self.tensors.items()
        }
        count = next(tensor.shape[0] for name, tensor in picked.items() if name != "order")
        return Packed(self.format, (count, self.shape[1]), picked, self.group_size)


def quantize(
    weight: Tensor, format: str, *, group_size: int | None = None, symmetric: bool = True
) -> Packed:
    """Round a weight (out, in) of any float type to the nearest of the format.

    Args:
        group_size: inputs that share a scale; 0 is one scale for each output. Only int4 and int8
            have a choice.
        symmetric: int4 with the zero at 8; otherwise each group has a zero of its own.

    Errors: OptionError for an unknown format, for a group size that it cannot have, and for a width
        that is no multiple of its block.
    """
    spec = FORMATS.get(format)
    if spec is None:
        raise OptionError(f"There is no format {format!r}.", f"Use one of {', '.join(FORMATS)}.")
    out, width = weight.shape
    group = spec.group_size if group_size is None else group_size
    if spec.block and (group != spec.block or width % spec.block):
        raise OptionError(
            f"{format} has blocks of {spec.block}; asked are groups of {group} in rows of {width}.",
            "Take int8, which has no blocks.",
        )
    if group < 0:
        raise OptionError(f"group_size is {group}.", "Give 32, 64, 128, or 0 for whole rows.")
    group = group or width
    step = max(_ROWS_AT_ONCE // max(width, 1), 1)
    parts = [
        _quantize_rows(weight[start : start + step].detach().float(), format, group, symmetric)
        for start in range(0, out, step)
    ]
    tensors = parts[0] if len(parts) == 1 else _joined(parts)
    return Packed(format, (out, width), tensors, group)


def _quantize_rows(weight: Tensor, format: str, group: int, symmetric: bool) -> dict[str, Tensor]:
    if format == "int4":
        return quantize_int4(weight, group, symmetric)
    if format == "int8":
        return quantize_int8(weight, group)
    encode = TYPES[format].encode
    return {"blocks": encode(weight.reshape(-1, group)).reshape(len(weight), -1)}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Chunks of rows as one; scales become float32 if any chunk's are."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def dequantize(packed: Packed) -> Tensor:
    """The weight (out, in) in float32, as the format defines it; inputs in the model's order."""
    tensors, (out, width) = packed.tensors, packed.shape
    if packed.format == "int4":
        weight = dequantize_int4(tensors, width, packed.group_size)
    elif packed.format == "int8":
        weight = dequantize_int8(tensors, width, packed.group_size)
    else:
        kind = TYPES[packed.format]
        blocks = tensors["blocks"].reshape(-1, kind.block_bytes)
        weight = kind.decode(blocks).reshape(out, width)
    order = tensors.get("order")
    if order is None:
        return weight
    return torch.empty_like(weight).index_copy_(1, order, weight)


def _check(packed: Packed) -> None:
    assert packed.format in FORMATS, packed.format
    spec, tensors, (out, width) = FORMATS[packed.format], packed.tensors, packed.shape
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert all(tensor.is_contiguous() for tensor in tensors.values()), found
    if spec.block:
        assert packed.group_size == spec.block and width % spec.block == 0, (packed.shape, spec)
        expected = {"blocks": (torch.uint8, (out, width // spec.block * spec.block_bytes))}
        assert found == expected, (found, expected)
        return
    assert packed.group_size > 0, packed.group_size
    four = packed.format == "int4"
    groups = -(-width // packed.group_size)
    codes = (torch.uint8, (out, -(-width // 2))) if four else (torch.int8, (out, width))
    allowed = {"codes": codes, "order": (torch.int64, (width,))}
    allowed["zeros"] = (torch.uint8 if four else torch.int16, (out, groups))
    scales = found.get("scales")
    assert scales in (
        (torch.float16, (out, groups)),
        (torch.float32, (out, groups)),
    ), (scales, packed.shape, packed.group_size)
    rest = {name: value for name, value in found.items() if name != "scales"}
    assert "codes" in rest and all(allowed.get(k) == v for k, v in rest.items()), (rest, allowed)
