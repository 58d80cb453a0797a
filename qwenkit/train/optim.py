"""Optimisers, the learning-rate schedule, and their state as named tensors.

AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) decays matrices only, never norms and biases.
Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) takes the matrices of the blocks,
AdamW the rest. Master weights are float32. Not covered: sharded or 8-bit optimiser states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qwenkit import ops
from qwenkit.errors import TrainError
from qwenkit.options.train import TrainOptions

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration in Jordan 2024: steep at zero, close to one on [0.7, 1.2].
"""


def make_optimizers(model: nn.Module, options: TrainOptions) -> list[Optimizer]:
    """The optimisers of a run; each parameter belongs to exactly one group of one of them."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if _is_hidden(name, p)] if options.optimizer == "muon" else []
    taken = {id(p) for p in hidden}
    matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in taken]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=True,
    )
    optimizers: list[Optimizer] = [adamw]
    if hidden:
        optimizers.append(
            Muon(hidden, lr=options.muon_learning_rate, weight_decay=options.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def _is_hidden(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name


class Muon(Optimizer):
    """Momentum whose matrix update is made nearly orthogonal by five Newton–Schulz steps.

    Matrices of one shape go through the iteration together. Update: lr · sqrt(max(1, rows /
    columns)).
    """

    def __init__(
        self, params: Sequence[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(
            list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients. A closure is refused: the loop has them."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = [self._momentum(p, group["momentum"]) for p in parameters]
                scale = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for parameter, update in zip(
                    parameters, orthogonalise(torch.stack(updates)), strict=True
                ):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-scale)
        return None

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum; the buffer is the only state."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(parameter.grad, 1.0 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(B, rows, columns) → the nearest (semi-)orthogonal matrices, roughly: singular values end in
    about 0.7–1.2.
    """
    a, b, c = _NEWTON_SCHULZ
    # bfloat16 is enough for a direction
    x = matrices.bfloat16() if ops.native_bfloat16(matrices.device) else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def schedule(step: int, total: int, options: TrainOptions) -> float:
    """Factor on every base learning rate for step `step` (0-based) of `total`: warm-up, then the
    chosen decay.

    The last step has the floor min_learning_rate / learning_rate; "constant" stays at 1 after the
    warm-up.
    """
    warmup = options.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if options.lr_schedule == "constant":
        return 1.0
    done = (step - warmup + 1) / max(1, total - warmup)
    floor = options.min_learning_rate / options.learning_rate
    shape = (
        0.5 * (1.0 + math.cos(math.pi * done)) if options.lr_schedule == "cosine" else 1.0 - done
    )
    return floor + (1.0 - floor) * shape


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Scale every group's learning rate from its base."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def state_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as `slot.parameter name` → tensor, for a checkpoint without pickle."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for optimizer in optimizers:
        for parameter, slots in optimizer.state.items():
            for slot, value in slots.items():
                found[f"{slot}.{names[id(parameter)]}"] = value
    return found


def load_state_tensors(
    model: nn.Module, optimizers: list[Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave. Errors: TrainError for one that does not fit."""
    owners = {
        name: optimizer.state[p]
        for name, p in model.named_parameters()
        for optimizer in optimizers
        if any(p is q for group in optimizer.param_groups for q in group["params"])
    }
    shapes: dict[str, Any] = {name: p.shape for name, p in model.named_parameters()}
    for key, tensor in tensors.items():
        slot, _, name = key.partition(".")
        if name not in owners or (slot != "step" and tensor.shape != shapes[name]):
            raise TrainError(
                f"The checkpoint's optimiser state {key} does not fit the model.",
                "Set resume: never.",
            )
        owners[name][slot] = tensor.clone()
