from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qwenkit.errors import TrainError
from qwenkit.model.load import init_model
from qwenkit.model.qwen import Qwen
from qwenkit.options import PretrainOptions
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train.optim import (
    Muon,
    load_state_tensors,
    make_optimizers,
    orthogonalise,
    schedule,
    set_learning_rate,
    state_tensors,
)
from qwenkit.train.pretrain import fresh_config

Make = Callable[..., PretrainOptions]


def tiny_model(options: PretrainOptions) -> Qwen:
    assert options.config is not None and options.tokenizer is not None
    tokenizer = Tokenizer.from_dir(options.tokenizer)
    return init_model(fresh_config(options.config, tokenizer), seed=0)


def learn(model: Qwen, steps: int, optimizers: list[torch.optim.Optimizer]) -> None:
    """Steps with gradients that depend on the weights alone."""
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().sin() + 0.1
        for optimizer in optimizers:
            optimizer.step()


def test_schedule_warms_up_and_ends_at_the_floor(pretrain_options: Make) -> None:
    options = pretrain_options(warmup_steps=4, learning_rate=1.0, min_learning_rate=0.1)
    factors = [schedule(step, 20, options) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[-1] == pytest.approx(0.1) and factors[3:] == sorted(factors[3:], reverse=True)
    assert schedule(11, 20, options) == pytest.approx(0.55)  # half way down
    linear = pretrain_options(warmup_steps=0, lr_schedule="linear", learning_rate=1.0)
    assert [schedule(s, 4, linear) for s in range(4)] == [0.75, 0.5, 0.25, 0.0]
    constant = pretrain_options(warmup_steps=2, lr_schedule="constant")
    assert [schedule(s, 9, constant) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]
    late = pretrain_options(warmup_steps=50)  # longer than the run: it just ends early
    assert schedule(9, 10, late) == 0.2


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_has_one_owner_and_only_matrices_decay(
    pretrain_options: Make, kind: str
) -> None:
    options = pretrain_options(optimizer=kind)
    model = tiny_model(options)
    optimizers = make_optimizers(model, options)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [id(p) for group in groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    for group in groups:
        decays = {p.ndim >= 2 for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}
    assert len(optimizers) == (2 if kind == "muon" else 1)
    if kind == "muon":
        assert isinstance(optimizers[1], Muon)
        muon = {id(p) for p in optimizers[1].param_groups[0]["params"]}
        assert id(model.model.embed_tokens.weight) not in muon and len(muon) == 2 * 7
    set_learning_rate(optimizers, 0.5)
    assert [group["lr"] for group in groups] == [0.5 * group["base_lr"] for group in groups]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_goes_on_exactly_where_it_was(pretrain_options: Make, kind: str) -> None:
    options = pretrain_options(optimizer=kind)
    model = tiny_model(options)
    optimizers = make_optimizers(model, options)
    learn(model, 3, optimizers)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in state_tensors(model, optimizers).items()}
    learn(model, 2, optimizers)

    again = tiny_model(options)
    again.load_state_dict(weights)
    fresh = make_optimizers(again, options)
    load_state_tensors(again, fresh, state)
    learn(again, 2, fresh)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_state_of_another_model_is_refused(pretrain_options: Make) -> None:
    options = pretrain_options()
    model = tiny_model(options)
    optimizers = make_optimizers(model, options)
    with pytest.raises(TrainError, match="exp_avg.model.nothing"):
        load_state_tensors(model, optimizers, {"exp_avg.model.nothing": torch.zeros(1)})
    with pytest.raises(TrainError, match="exp_avg.model.norm.weight"):
        load_state_tensors(model, optimizers, {"exp_avg.model.norm.weight": torch.zeros(7)})


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_newton_schulz_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    out = orthogonalise(torch.randn(3, *shape))
    values = torch.linalg.svdvals(out.float())
    assert out.shape == (3, *shape) and 0.5 < float(values.min()) and float(values.max()) < 1.4


def test_muon_follows_the_gradient_downhill() -> None:
    torch.manual_seed(0)
    target, x = torch.randn(12, 8), torch.nn.Parameter(torch.zeros(12, 8))
    optimizer = Muon([x], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (x - target).square().mean()
        x.grad = None
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
