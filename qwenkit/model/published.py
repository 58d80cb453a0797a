"""Published GPTQ and AWQ checkpoints, repacked once to int4 and int8 while they are read.

Every quantised module M has M.qweight, M.qzeros and M.scales (GPTQ: M.g_idx too) in place of
M.weight. w = (code − zero) · scale, bit by bit as the files define it:

- GPTQ: eight 4-bit or four 8-bit codes in an int32, along the inputs in qweight (in/8, out) and
  along the outputs in qzeros (n, out/8), lowest bits first. The first format stores zeros less one;
  gptq_v2 stores them plainly. g_idx (in) gives each input's group: with desc_act the groups are not
  neighbours, and the columns are sorted by group here (`order` of the `Packed`).
- AWQ in GEMM order: eight codes in an int32 along the outputs, qweight (in, out/8), qzeros
  (n, out/8); from the lowest bits they are outputs 0, 2, 4, 6, 1, 3, 5, 7 of their eight.

Some GPTQ files have a bias of zeros where the model has none: it is dropped if it is all zeros.
Source: the packing loops of AutoGPTQ, GPTQModel and AutoAWQ.
Legend: n groups of G inputs; O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.config.quantization import Quantization
from qwenkit.errors import CheckpointError
from qwenkit.io.safetensors import Checkpoint
from qwenkit.model.weights import DenseWeights
from qwenkit.ops import Packed
from qwenkit.ops.integers import pack_nibbles

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


class PublishedWeights(DenseWeights):
    """A checkpoint with a `quantization_config`; modules that it left alone are plain.

    Errors of the constructor: CheckpointError when tensors are missing, or of a shape or type that
    disagrees with quantization_config.
    """

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization) -> None:
        super().__init__(checkpoint)
        self._how, names = quantization, set(checkpoint)
        self._modules = sorted(
            name.removesuffix(".qweight") for name in names if name.endswith(".qweight")
        )
        if not self._modules:
            raise self._fault("it has no qweight at all")
        self._shapes = {module: self._shape(module, names) for module in self._modules}
        self._parts = {f"{module}.{part}" for module in self._modules for part in _PARTS}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        plain = {name: shape for name, shape in super().shapes().items() if name not in self._parts}
        packed = {f"{module}.weight": shape for module, shape in self._shapes.items()}
        return {**plain, **packed}

    def fault(self, name: str) -> str | None:
        return None if name.removesuffix(".weight") in self._shapes else super().fault(name)

    def ignorable(self, name: str) -> bool:
        if name.endswith(".bias") and name.removesuffix(".bias") in self._shapes:
            return not bool(self._checkpoint.read(name).any())
        return super().ignorable(name)

    def packed(self, name: str) -> str | None:
        here = name.endswith(".weight") and name.removesuffix(".weight") in self._shapes
        return f"int{self._how.bits}" if here else None

    def read(self, name: str, rows: slice | None = None) -> Tensor | Packed:
        if self.packed(name) is None:
            return super().read(name, rows)
        whole = self._repacked(name.removesuffix(".weight"))
        return whole if rows is None else whole.rows(rows)

    def _repacked(self, module: str) -> Packed:
        tensors = {
            part: self._checkpoint.read(f"{module}.{part}")
            for part in _PARTS
            if f"{module}.{part}" in self._checkpoint
        }
        try:
            return repack(tensors, self._how, self._shapes[module])
        except ValueError as error:
            raise self._fault(f"{module}.{error}") from error

    def _shape(self, module: str, names: set[str]) -> tuple[int, int]:
        """(out, in) of one module, all its parts held against it."""
        how, wide = self._how, 32 // self._how.bits
        needed = _PARTS[:3] if how.method == "awq" else _PARTS
        missing = [part for part in needed if f"{module}.{part}" not in names]
        if missing:
            raise self._fault(f"{module} has no {', '.join(missing)}")
        found = {part: self._checkpoint.info(f"{module}.{part}") for part in needed}
        first = found["qweight"][1]
        if len(first) != 2 or 0 in first:
            raise self._fault(f"{module}.qweight is {list(first)}; expected two dimensions")
        gptq = how.method == "gptq"
        out, width = (first[1], first[0] * wide) if gptq else (first[1] * wide, first[0])
        groups = -(-width // (how.group_size or width))
        expected = {
            "qzeros": (groups, -(-out // wide)),
            "scales": (groups, out),
            "g_idx": (width,),
        }
        for part, (dtype, shape) in found.items():
            floating = part == "scales"
            good = dtype in (torch.float16, torch.bfloat16, torch.float32)
            if (good if floating else dtype is torch.int32) is False:
                raise self._fault(f"{module}.{part} is {dtype}")
            if shape != expected.get(part, shape):
                raise self._fault(f"{module}.{part} is {list(shape)}, not {list(expected[part])}")
        return out, width

    def _fault(self, problem: str) -> CheckpointError:
        how = self._how
        what = f"{how.method}, {how.bits} bits, groups of {how.group_size or 'whole rows'}"
        return CheckpointError(
            f"{self.path}: quantization_config says {what}, but {problem}.",
            "Fetch the model again.",
        )


def repack(tensors: dict[str, Tensor], how: Quantization, shape: tuple[int, int]) -> Packed:
    """The parts of one module as a `Packed` of (out, in) `shape`.

    Errors: ValueError when g_idx names a group that is not there or leaves one short.
    """
    out, width = shape
    group = how.group_size or width
    scales = tensors["scales"].T.contiguous()  # (O, n)
    scales = scales.float() if scales.dtype is torch.bfloat16 else scales
    order = None
    if how.method == "gptq":
        codes = _unpack(tensors["qweight"].T, how.bits)  # (O, I)
        zeros = _unpack(tensors["qzeros"], how.bits)[:, :out].T  # (O, n)
        order = _order(tensors["g_idx"], group)
    else:
        codes = _from_awq(tensors["qweight"]).T
        zeros = _from_awq(tensors["qzeros"]).T
    if order is not None:
        codes = codes[:, order]
    middle = 1 << how.bits - 1
    zero = zeros.to(torch.int16) + how.zero_offset
    parts = {"scales": scales}
    if how.bits == 4:
        parts["codes"] = pack_nibbles(codes)
        parts |= {"zeros": zero.to(torch.uint8).contiguous()} if bool((zero != 8).any()) else {}
    else:
        parts["codes"] = (codes ^ 0x80).view(torch.int8).contiguous()
        parts |= {"zeros": (zero - middle).contiguous()} if bool((zero != middle).any()) else {}
    if order is not None:
        parts["order"] = order
    return Packed(f"int{how.bits}", (out, width), parts, group)


def _unpack(words: Tensor, bits: int) -> Tensor:
    """(R, C) int32 → (R, C·32/bits) uint8, lowest bits first."""
    octets = words.contiguous().view(torch.uint8)  # little-endian: the lowest byte is the first
    if bits == 8:
        return octets
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1)


def _from_awq(words: Tensor) -> Tensor:
    """(R, O/8) int32 in GEMM order → (R, O) uint8 in order."""
    place = torch.argsort(torch.tensor(AWQ_ORDER))
    return _unpack(words, 4).reshape(len(words), -1, 8)[:, :, place].flatten(1)


def _order(g_idx: Tensor, group: int) -> Tensor | None:
    """The columns sorted by group; None where they are already.

    Errors: ValueError when the groups are not of `group` columns each (the last may be shorter).
    """
    straight = torch.arange(len(g_idx), dtype=g_idx.dtype) // group
    if torch.equal(g_idx, straight):
        return None
    ranked, order = torch.sort(g_idx, stable=True)
    if not torch.equal(ranked, straight):
        raise ValueError(f"g_idx does not have {group} inputs in each group from 0 on")
    return order
