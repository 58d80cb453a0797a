"""The C++ bodies against a formula written in torch, in every instruction set of this machine."""

from __future__ import annotations

import math
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

from qwenkit.errors import OptionError
from qwenkit.ops import cpu

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"the C++ part is not built: {cpu.unavailable_reason()}"
)
SETS = cpu._cpu.instruction_sets() if cpu.available() else ["portable"]
COLS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 896, 1000, 3585]


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu._cpu.instruction_set()
    cpu._cpu.use_instruction_set(request.param)
    yield request.param
    cpu._cpu.use_instruction_set(before)


def formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float64 but for the two roundings to x's dtype, which are part of the contract."""
    wide = x.double()
    normal = (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)
    return (weight.double() * normal.double()).to(x.dtype)


def assert_close(got: Tensor, expected: Tensor) -> None:
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)
    else:  # a value may lie on the edge between two bfloat16 numbers: one step for each rounding
        torch.testing.assert_close(got, expected, rtol=2**-6, atol=1e-30)
        assert (got != expected).float().mean() < 0.02


def test_argmax_shows_the_first_of_equals_and_nan(isa: str) -> None:
    x = torch.randn(3, 40)
    x[0, 7] = x[0, 30] = 99.0
    x[1, 5] = torch.nan
    wide = torch.cat((x, torch.full((3, 9), 1e9)), 1)[:, :40]  # a view with gaps
    places, values = cpu.argmax(wide)
    assert places == [7, 5, int(x[2].argmax())]
    assert values[0] == 99.0 and math.isnan(values[1]) and values[2] == float(x[2].max())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_argmax_equals_numpys(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([*COLS, 16384, 40_001]))
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(cols)).round(decimals=1)
    special = st.sampled_from([math.nan, math.inf, -math.inf, 9.0])
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1), special)
    for row, col, value in data.draw(st.lists(places, max_size=6)):
        x[row, col] = value
    if data.draw(st.booleans()):
        x[0] = -math.inf
    for name in SETS:
        cpu._cpu.use_instruction_set(name)
        found, values = cpu.argmax(x)
        assert found == x.numpy().argmax(1).tolist()
        expected = x[range(rows), found]
        torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_top_is_a_stable_sort_without_what_is_no_number(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([*COLS, 16384, 40_001]))
    count = data.draw(st.integers(1, min(cols, 70)))
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(cols)).round(decimals=1)
    special = st.sampled_from([math.nan, math.inf, -math.inf, 9.0])
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1), special)
    for row, col, value in data.draw(st.lists(places, max_size=6)):
        x[row, col] = value
    for name in SETS:
        cpu._cpu.use_instruction_set(name)
        values, found = cpu.top(x, count)
        for row, own, at in zip(x.tolist(), values.tolist(), found.tolist(), strict=True):
            numbers = [i for i in range(cols) if row[i] == row[i]]
            expected = [(row[i], i) for i in sorted(numbers, key=lambda i: -row[i])[:count]]
            expected += [(-math.inf, 0)] * (count - len(expected))
            assert list(zip(own, at, strict=True)) == expected


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("cols", COLS)
def test_rms_norm_equals_the_formula(isa: str, cols: int, dtype: torch.dtype) -> None:
    torch.manual_seed(cols)
    x = (torch.randn(5, cols) * torch.tensor([1e-3, 0.1, 1.0, 30.0, 1e4])[:, None]).to(dtype)
    weight = torch.randn(cols).to(dtype)
    got = cpu.rms_norm(x, weight, 1e-6)
    assert got.dtype == dtype and got.shape == x.shape
    assert_close(got, formula(x, weight, 1e-6))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 300), exponent=st.integers(-9, 9))
def test_rms_norm_for_any_size_and_scale(rows: int, cols: int, exponent: int) -> None:
    torch.manual_seed(rows * 1000 + cols)
    x = torch.randn(rows, cols) * 10.0**exponent
    weight = torch.randn(cols)
    assert_close(cpu.rms_norm(x, weight, 1e-5), formula(x, weight, 1e-5))


def test_the_instruction_sets_agree_in_bfloat16() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 896).bfloat16(), torch.randn(896).bfloat16()
    results = []
    for name in SETS:
        cpu._cpu.use_instruction_set(name)
        results.append(cpu.rms_norm(x, weight, 1e-6))
    for result in results:
        assert_close(result, results[0])


def test_a_row_does_not_depend_on_its_neighbours(isa: str) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(7, 101), torch.randn(101)
    together = cpu.rms_norm(x, weight, 1e-6)
    alone = torch.cat([cpu.rms_norm(row[None], weight, 1e-6) for row in x])
    assert torch.equal(together, alone)


def test_leading_dimensions_views_and_gradients(isa: str) -> None:
    torch.manual_seed(2)
    wide = torch.randn(3, 4, 10, 20, requires_grad=True)
    view = wide[:, ::2, :, ::2]
    weight = torch.randn(10, requires_grad=True)
    got = cpu.rms_norm(view, weight, 1e-6)
    assert got.shape == (3, 2, 10, 10) and got.is_contiguous() and not got.requires_grad
    assert_close(got, formula(view.detach(), weight.detach(), 1e-6))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)])
def test_nothing_in_nothing_out(isa: str, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert cpu.rms_norm(x, torch.empty(shape[-1]), 1e-6).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bad_number_spoils_its_row_alone(isa: str, dtype: torch.dtype) -> None:
    x = torch.ones(4, 40, dtype=dtype)
    x[1, 3], x[2, 39] = float("nan"), float("inf")
    got = cpu.rms_norm(x, torch.ones(40, dtype=dtype), 1e-6)
    assert got[1].isnan().all() and got[2, 39].isnan() and (got[2, :39] == 0).all()
    assert torch.equal(got[[0, 3]], cpu.rms_norm(x[[0, 3]], torch.ones(40, dtype=dtype), 1e-6))
    assert got[[0, 3]].isfinite().all()


def test_rounding_to_bfloat16_is_to_nearest_even(isa: str) -> None:
    """Every bfloat16 times 1/√5 and 3/√5 (rounded): most products need rounding, some are ties."""
    weight = torch.arange(0, 2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    weight = weight[weight.isfinite()]
    x = torch.ones(1, weight.numel(), dtype=torch.bfloat16)
    x[0, 1::2] = 3.0
    normal = (x.float() / 5.0**0.5).bfloat16()
    expected = (weight.float() * normal.float()).bfloat16()
    assert torch.equal(cpu.rms_norm(x, weight, 0.0), expected)


def test_threads_run_at_once_and_agree() -> None:
    torch.manual_seed(3)
    inputs = [torch.randn(50, 333) for _ in range(8)]
    weight = torch.randn(333)
    results: list[Tensor | None] = [None] * 8

    def work(i: int) -> None:
        results[i] = cpu.rms_norm(inputs[i], weight, 1e-6)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, got in zip(inputs, results, strict=True):
        assert got is not None and torch.equal(got, cpu.rms_norm(x, weight, 1e-6))


def test_the_raw_module_refuses_what_it_can_see() -> None:
    with pytest.raises(ValueError, match="null pointer"):
        cpu._cpu.rms_norm(0, 0, 0, 1, 1, 1e-6, "float32")
    with pytest.raises(ValueError, match="dtype must be"):
        cpu._cpu.rms_norm(8, 8, 8, 1, 1, 1e-6, "float64")
    with pytest.raises(ValueError, match="not available here: mmx"):
        cpu._cpu.use_instruction_set("mmx")


def test_the_choice_is_the_best_and_the_environment_can_lower_it() -> None:
    probe = "from qwenkit.ops import cpu; print(cpu.instruction_set())"
    for wanted, expected in [("", SETS[-1]), *((name, name) for name in SETS)]:
        environment = {**os.environ, "QWENKIT_ISA": wanted}
        run = subprocess.run(
            [sys.executable, "-c", probe], env=environment, capture_output=True, text=True
        )
        assert run.stdout.strip() == expected, run.stderr


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_ISA", "sse9")
    cpu.available.cache_clear()
    try:
        with pytest.raises(OptionError, match="QWENKIT_ISA is 'sse9'.*portable"):
            cpu.available()
    finally:
        cpu.available.cache_clear()


def test_without_the_extension_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_import_error", "No module named 'qwenkit.ops._cpu'")
    cpu.available.cache_clear()
    try:
        assert not cpu.available() and cpu.instruction_set() is None
        assert cpu.unavailable_reason() == "No module named 'qwenkit.ops._cpu'"
    finally:
        cpu.available.cache_clear()
