"""The reference ops against their definitions, and the grouped attention against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit import ops
from qwenkit.ops import grouped, reference


def _naive_attention(q, k, v, bounds, scale, window):  # type: ignore[no-untyped-def]
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for start, end in zip(bounds, bounds[1:], strict=False):
        for i in range(start, end):
            first = start if window is None else max(start, i - window + 1)
            for h in range(q.shape[1]):
                scores = (k[first : i + 1, h // group] @ q[i, h]) * scale
                out[i, h] = scores.softmax(0) @ v[first : i + 1, h // group]
    return out


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 2), (3, 1), (2, 2)]),
    window=st.sampled_from([None, 1, 5]),
)
@settings(max_examples=25, deadline=None)
def test_attention_follows_the_definition(
    lengths: list[int], heads: tuple[int, int], window: int | None
) -> None:
    torch.manual_seed(len(lengths))
    n, d = sum(lengths), 8
    q = torch.randn(n, heads[0], d, dtype=torch.float64)
    k, v = (torch.randn(n, heads[1], d, dtype=torch.float64) for _ in range(2))
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu = torch.tensor(bounds, dtype=torch.int32)
    want = _naive_attention(q, k, v, bounds, 0.3, window)
    torch.testing.assert_close(reference.attention(q, k, v, cu, 0.3, window), want)
    if window is None:
        torch.testing.assert_close(grouped.attention(q, k, v, cu, 0.3), want)


def test_grouped_attention_has_the_reference_gradients() -> None:
    torch.manual_seed(0)
    lengths = [1, 5, 31, 32, 33, 70]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    n = int(cu[-1])
    made = [torch.randn(n, h, 16, dtype=torch.float64, requires_grad=True) for h in (6, 2, 2)]
    grad = torch.randn(n, 6, 16, dtype=torch.float64)
    want = torch.autograd.grad(reference.attention(*made, cu, 0.25), made, grad)
    got = torch.autograd.grad(grouped.attention(*made, cu, 0.25), made, grad)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_ignores_what_lies_after_the_end_of_a_sequence() -> None:
    q, k, v = (torch.randn(6, 2, 8) for _ in range(3))
    cu = torch.tensor([0, 3, 6], dtype=torch.int32)
    before = ops.attention(q, k, v, cu, 0.3)[:3]
    k[3:] = float("nan")
    torch.testing.assert_close(ops.attention(q, k, v, cu, 0.3)[:3], before)


def test_rope_rotates_pairs_and_keeps_length() -> None:
    x = torch.randn(5, 3, 8)
    angle = torch.rand(5, 4) * 6
    y = ops.rope(x, angle.cos(), angle.sin())
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    pair = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(5, 1, 4), angle[:, None])
    torch.testing.assert_close(y, torch.cat((pair.real, pair.imag), -1))


def test_token_logprobs() -> None:
    logits = torch.randn(4, 9)
    targets = torch.tensor([0, 8, 3, 3])
    want = logits.softmax(-1).log()[torch.arange(4), targets]
    torch.testing.assert_close(ops.token_logprobs(logits, targets), want)


def _sample(logits: torch.Tensor, uniform: torch.Tensor, **options: float) -> torch.Tensor:
    s = len(logits)
    made = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    rows = [torch.full((s,), made[key]) for key in ("temperature", "top_k", "top_p", "min_p")]
    return reference.sample(logits, *rows, uniform)


def test_sample_greedy_is_argmax() -> None:
    logits = torch.randn(7, 50)
    assert torch.equal(_sample(logits, torch.rand(7), temperature=0.0), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_from_the_distribution(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, float("-inf")])
    n = 20_000
    grid = (torch.arange(n) + 0.5) / n
    drawn = _sample(logits.expand(n, -1), grid, temperature=temperature)
    share = torch.bincount(drawn, minlength=5) / n
    torch.testing.assert_close(share, (logits / temperature).softmax(-1), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.79}, {0, 1}),
        ({"min_p": 0.4}, {0, 1}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.01}, {0, 1, 2}),
        ({"top_k": 1}, {0}),
        ({"top_p": 1e-9}, {0}),
    ],
)
def test_sample_limits(options: dict[str, float], allowed: set[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    n = 1000
    drawn = _sample(logits.expand(n, -1), torch.linspace(0, 1 - 1e-7, n), **options)
    assert set(drawn.tolist()) == allowed


def test_sample_never_returns_a_masked_token() -> None:
    logits = torch.full((3, 6), float("-inf"))
    logits[:, 2] = 0.0
    uniform = torch.tensor([0.0, 0.5, math.nextafter(1.0, 0.0)])
    assert _sample(logits, uniform).tolist() == [2, 2, 2]


def test_rows_in_int8_are_within_half_a_step() -> None:
    x = torch.randn(50, 3, 16) * torch.logspace(-4, 4, 50)[:, None, None]
    x[7] = 0
    x[8, 1] = torch.tensor([-5.0] + [0.0] * 15)
    packed = reference.pack_rows(x)
    assert packed.shape == (50, 3, 20) and packed.dtype == torch.int8
    back = reference.unpack_rows(packed)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((back - x).abs() <= step / 2 * 1.001).all()
    assert back[7].eq(0).all() and back[8, 1, 0] == -5.0
    assert reference.unpack_rows(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_over_an_int8_cache(dtype: torch.dtype, window: int | None) -> None:
    """Decoding, and a mixed batch: as over a cache that holds the rounded values."""
    k, v = torch.randn(2, 6, 4, 2, 8).to(dtype)  # six blocks of four tokens
    caches = [torch.empty(6, 4, 2, ops.cache_width(8, torch.int8), dtype=torch.int8) for _ in "kv"]
    slots = torch.randperm(24)
    ops.store_kv(k.flatten(0, 1)[slots], v.flatten(0, 1)[slots], *caches, slots)
    wide = [reference.unpack_rows(cache) for cache in caches]
    assert all((a.float() - b).abs().max() < 0.03 for a, b in zip((k, v), wide, strict=True))
    tables = torch.tensor([[0, 2, 5], [3, 1, 4]], dtype=torch.int32)
    context = torch.tensor([11, 6], dtype=torch.int32)
    for bounds in ([0, 1, 2], [0, 4, 5], [0, 11, 17]):
        q = torch.randn(bounds[-1], 4, 8).to(dtype)
        where = (tables, context, torch.tensor(bounds, dtype=torch.int32))
        found = ops.paged_attention(q, *caches, *where, 0.3, window)
        expected = reference.paged_attention(q.float(), *wide, *where, 0.3, window)
        close = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(found.float(), expected, atol=close, rtol=close)
