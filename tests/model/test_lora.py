"""What low-rank parts add to the output of a linear layer, and to which rows of it."""

from __future__ import annotations

import pytest
import torch

from qwenkit import ops
from qwenkit.model.linear import Linear, QuantLinear
from qwenkit.model.lora import Adapter, LayerParts, LowRank, adapted

N, IN, OUT = 7, 32, 48


def part(seed: int, rank: int = 4) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, IN), (OUT, rank))
    return LowRank(*(torch.randn(shape, generator=generator) for shape in shapes))


@pytest.fixture(params=["plain", "packed"])
def linear(request: pytest.FixtureRequest) -> Linear | QuantLinear:
    torch.manual_seed(0)
    plain = Linear(IN, OUT, bias=True)
    for parameter in plain.parameters():
        parameter.data.normal_()
    if request.param == "plain":
        return plain
    return QuantLinear(ops.quantize(plain.weight.detach(), "int8", group_size=32), plain.bias)


@torch.no_grad()
def test_each_row_gets_what_its_own_adapter_adds(linear: Linear | QuantLinear) -> None:
    x = torch.randn(N, IN, generator=torch.Generator().manual_seed(1))
    first, second = part(1), part(2, rank=9)
    parts: LayerParts = [
        (slice(1, 3), {"q_proj": first, "k_proj": second}),
        (torch.tensor([6, 0]), {"q_proj": second}),
        (slice(3, 5), {"k_proj": first}),  # nothing for this layer
    ]
    want = linear(x)
    for rows, added in ((slice(1, 3), first), ([6, 0], second)):
        want[rows] += x[rows] @ added.a.T @ added.b.T
    torch.testing.assert_close(adapted(linear, x, "q_proj", parts), want, atol=1e-4, rtol=1e-4)
    rest = [3, 4, 5]
    assert torch.equal(adapted(linear, x, "q_proj", parts)[rest], linear(x)[rest])


@torch.no_grad()
def test_without_adapters_there_is_the_layer_alone(linear: Linear | QuantLinear) -> None:
    x = torch.randn(N, IN)
    assert torch.equal(adapted(linear, x, "q_proj", []), linear(x))
    nobody: LayerParts = [(slice(0, 0), {"q_proj": part(1)})]
    assert torch.equal(adapted(linear, x, "q_proj", nobody), linear(x))


def test_an_adapter_has_a_number_of_its_own_and_a_size() -> None:
    layers = [{"q_proj": part(1), "k_proj": part(2, rank=8)}, {}]
    one, other = Adapter(layers), Adapter(layers)
    assert one.id != other.id and one != other and len({one, other}) == 2
    assert one.nbytes == 4 * (4 + 8) * (IN + OUT)
