"""The mean of the weights of checkpoints that share a training history, as one checkpoint.

    python scripts/average_models.py out/average out/finish/model out/settle/model

Fine-tuning that gains on some skills loses a little on others; where one run started from the
other, the mean keeps most of both gains (Wortsman 2022, arXiv 2109.01903). The sum is taken in
float64; everything but the weights is copied from the last checkpoint.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.io.safetensors import Checkpoint, save_file


def main(target: Path, sources: list[Path]) -> None:
    total: dict[str, Tensor] = {}
    for source in sources:
        with Checkpoint.open(source) as checkpoint:
            for name in checkpoint:
                tensor = checkpoint.read(name).double() / len(sources)
                total[name] = total[name] + tensor if name in total else tensor
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sources[-1], target)
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in total.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    print(target)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: average_models.py TARGET CHECKPOINT CHECKPOINT …")
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
