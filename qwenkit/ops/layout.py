"""Packed weights in the layout of the C++ kernels: one repacking at load, and an exact way back.

    weight = repack(packed)          # a KernelWeight, or None where no kernel takes the format
    weight.dense()                   # bit by bit what formats.dequantize(packed) is

Every integer format becomes codes of 4, 5 or 8 bits with scales for each 16 or 32 inputs or a
multiple of it; csrc/qlinear.inc describes the order. Nothing is rounded: scales that are products
of two numbers in the file stay two numbers. The 6 bits of q6_k take 8 here.

Not covered: float formats, and int4/int8 with groups that are no multiple of 16.
Legend: O outputs, I inputs, L rows of a tile, T tiles, n groups, u units of 16 or 32 inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenkit.ops import gguf_codes, pages
from qwenkit.ops.formats import Packed
from qwenkit.ops.gguf_codes import Plain
from qwenkit.ops.integers import unpack_nibbles

try:
    import qwenkit.ops._cpu as _cpu
except ImportError:  # cpu.available() tells; nothing here is called then
    if not TYPE_CHECKING:
        _cpu = None

SCALE_KINDS = {"float32": 0, "float16": 1, "super_unsigned": 2, "super_signed": 3}
OFFSET_KINDS = {"none": 0, "float32": 1, "float16": 2, "zeros": 3, "super_unsigned": 4}
_MIDDLE = {4: 8, 5: 16, 8: 0}
_ROW_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_ROWS_AT_ONCE = 1 << 17
"""Numbers that are made at once: few enough for the cache, and for memory that the allocator keeps
and gives again (larger pieces came from the system anew each time: three times as slow).
"""


@dataclass(frozen=True, eq=False)
class KernelWeight:
    """What `Packed` is to files, for the kernels of one vector width: the same weight, re-ordered.

    `lanes` is the width that it was made for. Has `shape`, `nbytes`, `device` and `to` as `Packed`
    has.
    """

    format: str
    shape: tuple[int, int]
    lanes: int
    bits: int
    halves: bool
    group: int
    kinds: tuple[int, int]
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> KernelWeight:
        """Itself: the layout is for the CPU."""
        assert torch.device(device).type == "cpu", "repacked for the CPU; load again for a device"
        return self

    def handle(self) -> _cpu.Weight:
        """The addresses for the kernels; valid while this object lives."""
        found = self.__dict__.get("_handle")
        if found is None:
            names = ("codes", "scales", "offsets", "fine_scales", "fine_offsets")
            at = [self.tensors[n].data_ptr() if n in self.tensors else 0 for n in names]
            rows, cols = self.shape
            found = _cpu.packed_weight(
                rows, cols, self.lanes, self.bits, self.halves, self.group, self.kinds, at
            )
            self.__dict__["_handle"] = found
        handle: _cpu.Weight = found
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_handle"}

    def dense(self, index: Tensor | None = None) -> Tensor:
        """The weight (O, I) in float32, or the rows `index` (M) of it."""
        if index is None:
            index = torch.arange(self.shape[0])
        if len(index) == 0:
            return torch.empty(0, self.shape[1])
        step = max(_ROWS_AT_ONCE // max(self.shape[1], 1), 1)
        parts = [self._dense(some) for some in torch.split(index, step)]
        weight = torch.cat(parts) if len(parts) != 1 else parts[0]
        order = self.tensors.get("order")
        return weight if order is None else torch.empty_like(weight).index_copy_(1, order, weight)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (M, I), by one kernel in float32 and bfloat16 where there is no offset."""
        name, offset = _ROW_TYPES.get(dtype), self.kinds[1]
        if name is None or offset != OFFSET_KINDS["none"] or "order" in self.tensors:
            return self.dense(index).to(dtype)
        index = index.contiguous()
        assert index.dtype == torch.int64, index.dtype
        out = torch.empty(len(index), self.shape[1], dtype=dtype)
        _cpu.packed_rows(self.handle(), index.data_ptr(), len(index), out.data_ptr(), name)
        return out

    def _dense(self, index: Tensor) -> Tensor:
        tile, row = index // self.lanes, index % self.lanes
        codes = self._codes(tile, row).float()  # (M, u, 16 or 32)
        step = self.group // codes.shape[2]

        def coarse(name: str) -> Tensor:
            """(M, u, 1) of what is stored for each group."""
            found = self.tensors[name][tile, :, row].float()
            return found.repeat_interleave(step, 1)[:, : codes.shape[1], None]

        scale, offset = coarse("scales"), self.kinds[1]
        if "fine_scales" in self.tensors:
            scale = scale * self.tensors["fine_scales"][tile, :, row].float()[:, :, None]
        if offset == OFFSET_KINDS["zeros"]:
            out = (codes - coarse("offsets")) * scale
        elif offset == OFFSET_KINDS["none"]:
            out = (codes - _MIDDLE[self.bits]) * scale
        elif offset == OFFSET_KINDS["super_unsigned"]:
            fine = self.tensors["fine_offsets"][tile, :, row].float()[:, :, None]
            out = scale * codes - coarse("offsets") * fine
        else:
            out = scale * codes + coarse("offsets")
        return out.flatten(1)[:, : self.shape[1]].contiguous()

    def _codes(self, tile: Tensor, row: Tensor) -> Tensor:
        """(M, u, 16 or 32) of the rows asked for."""
        found = self.tensors["codes"][tile, :, :, row].flatten(2)  # (M, blocks, bits · 4)
        if self.bits < 8:
            low, fifth = found[..., :16], found[..., 16:]
            found = torch.cat((low & 15, low >> 4), dim=2)
            if self.bits == 5:
                found |= torch.cat([fifth >> j & 1 for j in range(8)], dim=2) << 4
        else:
            found = found.view(torch.int8)
        unit = 16 if self.halves else 32
        return found.reshape(len(tile), -1, unit)


def repack(packed: Packed) -> KernelWeight | None:
    """The weight in the layout of the instruction set in use; None if no kernel takes it."""
    return repack_rows(packed.shape, packed.rows)


def repack_rows(shape: tuple[int, int], rows: Callable[[slice], Packed]) -> KernelWeight | None:
    """`repack` of a weight (O, I) that is made some rows at a time: `rows(slice)` has the rows
    asked for, all of them in one format.
    """
    (out, width), lanes = shape, _cpu.lanes()
    padded, tiles = -(-width // 32) * 32, -(-out // lanes)
    tensors: dict[str, Tensor] = {}
    packed = plain = None
    step = max(_ROWS_AT_ONCE // padded // lanes, 1)  # tiles at once
    for tile in range(0, tiles, step):
        count = min((tile + step) * lanes, out) - tile * lanes
        packed = rows(slice(tile * lanes, tile * lanes + count))
        plain = _plain(packed)
        if plain is None:
            return None
        if not tensors:
            tensors = _empty(plain, tiles, padded, lanes)
        _fill(tensors, plain, tile, count, padded)
    if packed is None or plain is None:
        return None
    scale_kind = plain.scale_kind
    if scale_kind == "float16":  # other rows may have needed more
        scale_kind = str(tensors["scales"].dtype).removeprefix("torch.")
    kinds = (SCALE_KINDS[scale_kind], OFFSET_KINDS[plain.offset_kind])
    if "order" in packed.tensors:
        tensors["order"] = packed.tensors["order"]
    how = (lanes, plain.bits, plain.halves, plain.group, kinds)
    return KernelWeight(packed.format, shape, *how, tensors)


def _empty(plain: Plain, tiles: int, padded: int, lanes: int) -> dict[str, Tensor]:
    units, groups = padded // (16 if plain.halves else 32), -(-padded // plain.group)
    shape = (tiles, padded // 32, plain.bits, lanes, 4)
    tensors = {"codes": pages.empty(shape, torch.uint8)}
    counts = {"scales": groups, "offsets": groups, "fine_scales": units, "fine_offsets": units}
    for name, count in counts.items():
        found = getattr(plain, name)
        if found is not None:
            tensors[name] = pages.empty((tiles, count, lanes), found.dtype).zero_()
    return tensors


def _fill(tensors: dict[str, Tensor], plain: Plain, tile: int, rows: int, padded: int) -> None:
    """Write `rows` rows from `tile` on. What has no number in the file stays 0."""
    codes = F.pad(plain.codes, (0, padded - plain.codes.shape[1])).contiguous()
    at = tensors["codes"][tile].data_ptr()
    _cpu.interleave(codes.data_ptr(), at, rows, padded, plain.bits)
    for name, to in tensors.items():
        if name != "codes":
            found, lanes = getattr(plain, name), to.shape[2]
            if found.dtype == torch.float32 != to.dtype:
                to = tensors[name] = to.float()  # float16 could not hold these
            whole = F.pad(found, (0, 0, 0, -rows % lanes)).reshape(-1, lanes, found.shape[1])
            to[tile : tile + len(whole), : found.shape[1]] = whole.transpose(1, 2)


def _plain(packed: Packed) -> Plain | None:
    if packed.format in gguf_codes.READERS:
        return gguf_codes.read(packed.format, packed.tensors["blocks"])
    if packed.format not in ("int4", "int8"):
        return None
    width, group = packed.shape[1], packed.group_size
    if group >= width:
        group = -(-width // 32) * 32
    if group % 16:
        return None
    four = packed.format == "int4"
    codes, scales = packed.tensors["codes"], packed.tensors["scales"]
    zeros = packed.tensors.get("zeros")
    return Plain(
        bits=4 if four else 8,
        codes=unpack_nibbles(codes, width) if four else codes,
        halves=group % 32 != 0,
        group=group,
        scale_kind="float16" if scales.dtype == torch.float16 else "float32",
        scales=scales,
        offset_kind="none" if zeros is None else "zeros",
        offsets=None if zeros is None else zeros.to(torch.int16),
    )
