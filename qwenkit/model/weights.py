"""Where a model's weights come from: one small interface over the kinds of checkpoints.

A `Weights` knows the shape of every tensor under the model's own names and reads one at a time, as
a plain tensor or, where the file has it packed, as a `Packed`. `load.py` holds the names and shapes
against the model and puts the pieces in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qwenkit.errors import CheckpointError
from qwenkit.io.safetensors import Checkpoint
from qwenkit.ops import Packed

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Weights(Protocol):
    """Tensors of a checkpoint by the model's names."""

    path: Path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape, of everything in the file."""

    def fault(self, name: str) -> str | None:
        """Why the tensor cannot be a weight, from the header alone; None if it can."""

    def ignorable(self, name: str) -> bool:
        """Whether a tensor that the model has no place for changes nothing."""

    def packed(self, name: str) -> str | None:
        """The format that the file has it packed in; None for plain numbers."""

    def read(self, name: str, rows: slice | None = None) -> Tensor | Packed:
        """One tensor, or some rows of one. Errors: FormatError, CheckpointError."""

    def release(self, name: str) -> None:
        """The tensor as the file has it is not needed any more: its memory may go."""


class DenseWeights:
    """A published checkpoint as it is: every tensor a float type."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self._checkpoint = checkpoint.path, checkpoint

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._checkpoint.info(name)[1] for name in self._checkpoint}

    def fault(self, name: str) -> str | None:
        dtype = self._checkpoint.info(name)[0]
        if dtype in FLOATS:
            return None
        return f"{name} is {str(dtype).removeprefix('torch.')}, expected a float type"

    def ignorable(self, name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq")

    def packed(self, name: str) -> str | None:
        return None

    def read(self, name: str, rows: slice | None = None) -> Tensor | Packed:
        """A private copy, so that a file replaced or cut later cannot harm a running model."""
        return self._checkpoint.read(name, rows)

    def release(self, name: str) -> None:
        """Nothing to do: what was read belongs to the caller."""


def few(names: list[str], limit: int = 5) -> str:
    """The first names and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def unfit(path: Path, problem: str) -> CheckpointError:
    """The error for tensors that do not fit what stands beside them."""
    return CheckpointError(
        f"{path} does not fit its config.json: {problem}.",
        "Fetch the model again, or mend config.json.",
    )
