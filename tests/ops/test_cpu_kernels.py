"""rope, swiglu, store_kv, paged attention and dense linear in C++ against the reference, in every
instruction set; and the threads that they share.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit.ops import cpu, reference

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"the C++ part is not built: {cpu.unavailable_reason()}"
)
SETS = cpu._cpu.instruction_sets() if cpu.available() else ["portable"]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu._cpu.instruction_set()
    cpu._cpu.use_instruction_set(request.param)
    yield request.param
    cpu._cpu.use_instruction_set(before)


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_linear(isa: str, rows: int, weight_dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    for out, width in ((1, 1), (37, 100), (64, 896), (7, 33), (130, 257), (3, 15)):
        weight, bias = torch.randn(out, width).to(weight_dtype), torch.randn(out)
        x = torch.randn(rows, width)
        expected = x.double() @ weight.double().T + bias
        limit = (x.double().abs() @ weight.double().abs().T + bias.abs()) * 2e-6
        assert bool(((cpu.linear(x, weight, bias) - expected).abs() <= limit).all())
        half = x.bfloat16()
        expected = half.double() @ weight.double().T
        got = cpu.linear(half, weight)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=2**-7, atol=1e-4)


def paged(
    lens: list[int], contexts: list[int], heads: int, kv: int, d: int, size: int
) -> tuple[Tensor, ...]:
    """q, caches with nan wherever nobody wrote, tables, context_lens, cu_seqlens."""
    blocks = [-(-context // size) for context in contexts]
    total = sum(blocks) + 2
    k = torch.full((total, size, kv, d), float("nan"))
    v = k.clone()
    order, at = torch.randperm(total).int(), 0
    tables = torch.full((len(lens), max(blocks)), total - 1, dtype=torch.int32)
    for s, (count, context) in enumerate(zip(blocks, contexts, strict=True)):
        tables[s, :count] = order[at : at + count]
        at += count
        slots = (tables[s, :count, None].long() * size + torch.arange(size)).flatten()[:context]
        k.view(-1, kv, d)[slots] = torch.randn(context, kv, d)
        v.view(-1, kv, d)[slots] = torch.randn(context, kv, d)
    cu = torch.tensor([0, *lens]).cumsum(0).int()
    return torch.randn(sum(lens), heads, d), k, v, tables, torch.tensor(contexts).int(), cu


def assert_attention(made: tuple[Tensor, ...], window: int | None) -> None:
    q, k, v, *where = made
    scale = q.shape[2] ** -0.5
    wide = (q.double(), k.double(), v.double())
    expected = reference.paged_attention(*wide, *where, scale, window)
    got = cpu.paged_attention(q, k, v, *where, scale, window)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("window", [None, 7, 100])
@pytest.mark.parametrize(
    ("heads", "kv", "d", "size"), [(14, 2, 64, 16), (4, 4, 128, 8), (3, 1, 20, 4)]
)
def test_paged_attention(
    isa: str, heads: int, kv: int, d: int, size: int, window: int | None
) -> None:
    torch.manual_seed(d)
    assert_attention(paged([1, 5, 70, 33, 1], [1, 9, 200, 33, 130], heads, kv, d, size), window)
    assert_attention(paged([1, 1, 1], [64, 65, 300], heads, kv, d, size), window)


@settings(max_examples=15, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(1, 80), st.integers(0, 150)), min_size=1, max_size=4),
    shape=st.sampled_from([(2, 1, 8, 4), (6, 2, 32, 16), (7, 7, 12, 5), (5, 1, 64, 1)]),
    window=st.sampled_from([None, 3, 64, 65]),
)
def test_paged_attention_of_any_shape(
    spans: list[tuple[int, int]], shape: tuple[int, int, int, int], window: int | None
) -> None:
    lens, contexts = [n for n, _ in spans], [n + more for n, more in spans]
    assert_attention(paged(lens, contexts, *shape), window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", [*DTYPES, torch.int8])
def test_attention_over_stored_keys(isa: str, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n, kv, d = 40, 2, 24
    k, v = (torch.randn(n, kv, d).to(dtype) for _ in range(2))
    k[3] = 0
    width = reference.cache_width(d, cache_dtype)
    caches = [torch.zeros(6, 8, kv, width, dtype=cache_dtype) for _ in range(4)]
    slots = torch.randperm(48)[:n]
    cpu.store_kv(k, v, caches[0], caches[1], slots)
    reference.store_kv(k, v, caches[2], caches[3], slots)
    assert torch.equal(caches[0], caches[2]) and torch.equal(caches[1], caches[3])
    q = torch.randn(40, 6, d).to(dtype)
    where = (torch.arange(5).int()[None], torch.tensor([40]).int(), torch.tensor([0, 40]).int())
    wide = [reference.unpack_rows(x).float() for x in (q, caches[2], caches[3])]
    expected = reference.paged_attention(*wide, *where, 0.2)
    got = cpu.paged_attention(q, caches[0], caches[1], *where, 0.2)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected.to(dtype), rtol=2**-7, atol=1e-5)


def test_a_spoilt_row_of_an_int8_cache_shows(isa: str) -> None:
    k = torch.randn(3, 1, 20)
    k[0, 0, 3], k[1, 0, 5] = torch.nan, torch.inf
    caches = [torch.zeros(1, 4, 1, 24, dtype=torch.int8) for _ in "kv"]
    cpu.store_kv(k, k, caches[0], caches[1], torch.arange(3))
    where = (torch.zeros(3, 1).int(), torch.tensor([1, 2, 3]).int(), torch.arange(4).int())
    out = cpu.paged_attention(torch.randn(3, 1, 20), *caches, *where, 0.2)
    assert not out.isfinite().all(-1).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 6, 16, 32, 64, 80, 128])
def test_rope(isa: str, d: int, dtype: torch.dtype) -> None:
    torch.manual_seed(d)
    x, angle = torch.randn(700, 3, d).to(dtype), torch.rand(700, d // 2) * 6
    expected = reference.rope(x.float(), angle.cos(), angle.sin()).to(dtype)
    got = cpu.rope(x, angle.cos(), angle.sin())
    torch.testing.assert_close(
        got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, 8, 17, 133, 9000])
def test_swiglu(isa: str, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    gate, up = (torch.randn(3, count) * 8).to(dtype), torch.randn(3, count).to(dtype)
    expected = reference.swiglu(gate.float(), up.float()).to(dtype)
    got = cpu.swiglu(gate, up)
    torch.testing.assert_close(
        got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 2e-6, atol=1e-30
    )


def test_swiglu_at_the_ends(isa: str) -> None:
    gate = torch.tensor([-300.0, -88.0, 0.0, 90.0, 300.0, float("nan"), float("inf")])
    got = cpu.swiglu(gate, torch.ones(7))
    assert bool((got[:2].abs() < 1e-30).all()) and got[2] == 0
    assert got[3:5].tolist() == [90.0, 300.0] and got[5].isnan() and got[6].isinf()


def test_nothing_in_nothing_out(isa: str) -> None:
    assert cpu.linear(torch.empty(0, 5), torch.randn(3, 5)).shape == (0, 3)
    assert cpu.swiglu(torch.empty(0, 5), torch.empty(0, 5)).shape == (0, 5)
    assert cpu.rope(torch.empty(0, 2, 4), torch.empty(0, 2), torch.empty(0, 2)).shape == (0, 2, 4)


def test_callers_at_once_and_thread_counts() -> None:
    torch.manual_seed(1)
    weight, inputs = torch.randn(3000, 64), [torch.randn(2, 64) for _ in range(6)]
    wanted = [cpu.linear(x, weight) for x in inputs]
    before, wrong = cpu.threads(), []

    def work(i: int) -> None:
        for _ in range(15):
            if not torch.equal(cpu.linear(inputs[i], weight), wanted[i]):
                wrong.append(i)

    try:
        for count in (1, 2, 4, 3):
            cpu.set_threads(count)
            assert cpu.threads() == count
            threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        cpu.set_threads(before)
    assert not wrong


_FORKED = """
import os, sys, time, torch
from qwenkit.ops import cpu
assert cpu.available()
cpu.set_threads(3)
x, w = torch.randn(2, 64), torch.randn(3000, 64)
want = cpu.linear(x, w)
child = os.fork()
if child == 0:
    same = all(torch.equal(cpu.linear(x, w), want) for _ in range(20))
    os._exit(0 if same and cpu.threads() == 3 else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
same = torch.equal(cpu.linear(x, w), want)
print(code, same)
"""


def test_a_forked_child_has_threads_of_its_own_and_both_end() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKED],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0 and run.stdout.strip() == "0 True", run.stderr
