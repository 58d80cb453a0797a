"""SamplingParams refuses what is out of range, and names it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from qwenkit.engine import Request, SamplingParams
from qwenkit.errors import RequestError

BAD: list[tuple[str, Any]] = [
    *[("max_tokens", v) for v in (0, -1, 2**63, 1.5, "10", True, None, math.nan)],
    *[("temperature", v) for v in (-1, math.nan, math.inf, 1e308, "hot", None, True)],
    *[("top_p", v) for v in (0, -0.1, 1.0001, math.nan, None)],
    *[("top_k", v) for v in (-2, 1.0, 2**64, None, True)],
    *[("min_p", v) for v in (-0.1, 1.1, math.nan)],
    *[("repetition_penalty", v) for v in (0, -1, math.inf, math.nan, 1e-45)],
    *[("presence_penalty", v) for v in (-2.0001, 2.0001, math.nan)],
    *[("frequency_penalty", v) for v in (-2.0001, 2.0001, math.inf)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 1.0, "1")],
    *[("logprobs", v) for v in (-1, 21, True, 1.0)],
    *[("min_tokens", v) for v in (-1, 129, 1.0)],
    *[("stop_token_ids", v) for v in ("ab", 3, (-1,), (1.0,), (True,), tuple(range(65)))],
    *[("logit_bias", v) for v in ([1], {-1: 0}, {"abc": 1}, {1: 101}, {1: math.nan}, {1: -100.1})],
    ("logit_bias", dict.fromkeys(range(1025), 0.0)),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_name_their_parameter(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_huge_integers_make_short_messages() -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(max_tokens=10**5000)
    assert len(str(caught.value)) < 120


def test_edges_are_taken() -> None:
    params = SamplingParams(
        max_tokens=1,
        temperature=1e-45,
        top_k=-1,
        top_p=1e-9,
        min_p=1,
        repetition_penalty=0.01,
        presence_penalty=-2,
        frequency_penalty=2,
        seed=-(2**63),
        logit_bias={0: -100, 1: 100},
        stop_token_ids=[3, 4],  # type: ignore[arg-type]
        min_tokens=1,
        logprobs=20,
    )
    assert params.greedy, "a temperature that would overflow float32 is greedy"
    assert params.stop_token_ids == (3, 4)
    assert params.penalised and not SamplingParams().penalised
    assert params.replace(temperature=1.0).temperature == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 1  # type: ignore[misc]


def test_the_callers_bias_is_copied() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = math.nan
    assert params.logit_bias == {1: 2.0}


def test_arithmetic_of_a_request() -> None:
    request = Request("a", (1, 2, 3), SamplingParams(max_tokens=4))
    assert (request.num_prompt, request.num_output, request.num_pending) == (3, 0, 3)
    assert request.capacity == 6
    request.num_computed = 3
    request.token_ids.append(9)
    assert (request.num_output, request.num_pending) == (1, 1)
