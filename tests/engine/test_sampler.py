"""Sampling: each rule held against a direct computation, and each row independent of the others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.engine.request import Request, SamplingParams
from qwenkit.engine.sampler import Draw, Sampler

V = 32


def logits(rows: int, seed: int = 0, width: int = V) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def request(name: str = "a", prompt: tuple[int, ...] = (1, 2), **params: Any) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=1000, **params))


def draw(requests: list[Request], x: torch.Tensor, sampler: Sampler | None = None) -> list[Draw]:
    return (sampler or Sampler(V, torch.device("cpu"))).sample(requests, x.clone())


def sequence(count: int, x: torch.Tensor, **params: Any) -> list[int]:
    """`count` draws from one row, one after the other."""
    sampler, r = Sampler(V, torch.device("cpu")), request(**params)
    for _ in range(count):
        token = draw([r], x, sampler)[0].token
        assert token is not None
        r.token_ids.append(token)
    return r.token_ids[r.num_prompt :]


def many(count: int, x: torch.Tensor, **params: Any) -> torch.Tensor:
    """Frequencies of `count` draws from one row."""
    tokens = sequence(count, x, seed=7, **params)
    return torch.bincount(torch.tensor(tokens), minlength=V) / count


def test_greedy_is_argmax_without_pad_rows() -> None:
    x = logits(3, width=V + 8)
    x[:, V:] = 100.0
    expected = x[:, :V].argmax(-1).tolist()
    assert [d.token for d in draw([request(str(i)) for i in range(3)], x)] == expected
    hot = draw([request(str(i), temperature=9.0, seed=i) for i in range(3)], x)
    assert all(d.token is not None and d.token < V for d in hot)


def test_draws_follow_the_distribution() -> None:
    x = logits(1)
    found = many(4000, x, temperature=2.0)
    assert (found - (x[0] / 2.0).softmax(-1)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("params", "rule"),
    [
        ({"top_k": 3}, lambda p: p >= p.sort(descending=True).values[2]),
        ({"min_p": 0.2}, lambda p: p >= 0.2 * p.max()),
        (
            {"top_p": 0.6},
            lambda p: (
                p
                >= p.sort(descending=True).values[
                    int((p.sort(descending=True).values.cumsum(0) < 0.6).sum())
                ]
            ),
        ),
    ],
)
def test_filters_keep_exactly_their_tokens(params: dict[str, Any], rule: Any) -> None:
    x = logits(1) / 2
    probs = x[0].softmax(-1)
    kept = rule(probs)
    found = many(3000, x, temperature=1.0, **params)
    assert (found[~kept] == 0).all()
    expected = torch.where(kept, probs, torch.zeros(())) / probs[kept].sum()
    assert (found - expected).abs().max() < 0.04


def test_penalties_equal_their_definitions() -> None:
    x = logits(1)
    r = request(
        prompt=(3, 4, 4), repetition_penalty=1.7, presence_penalty=0.9, frequency_penalty=0.4
    )
    sampler, output = Sampler(V, torch.device("cpu")), []
    for step in range(30):
        x = logits(1, seed=step)
        expected = x[0].clone()
        for token in {3, 4, *output}:
            expected[token] = (
                expected[token] * 1.7 if expected[token] < 0 else expected[token] / 1.7
            )
        for token in set(output):
            expected[token] -= 0.9 + 0.4 * output.count(token)
        token = draw([r], x, sampler)[0].token
        assert token == int(expected.argmax())
        output.append(token)
        r.token_ids.append(token)
    assert len(set(output)) > 3


def test_bias_forces_and_forbids() -> None:
    x = logits(1)
    best = int(x.argmax())
    assert draw([request(logit_bias={5: 100})], x)[0].token == 5
    banned = draw([request(logit_bias={best: -100})], x)[0].token
    assert banned == int(x[0].topk(2).indices[1])


def test_logprobs_are_of_the_raw_distribution() -> None:
    x = logits(2)
    rows = [
        request(
            "a", temperature=5.0, seed=1, logprobs=4, repetition_penalty=2.0, logit_bias={9: 100}
        ),
        request("b"),
    ]
    [first, second] = draw(rows, x)
    raw = x[0].log_softmax(-1)
    assert second.logprob is None and first.logprob is not None
    assert first.logprob.id == first.token == 9
    assert math.isclose(first.logprob.logprob, float(raw[9]), abs_tol=1e-5)
    values, ids = raw.topk(4)
    assert [i for i, _ in first.logprob.top] == ids.tolist()
    assert torch.allclose(torch.tensor([v for _, v in first.logprob.top]), values, atol=1e-5)
    [only] = draw([request(logprobs=0)], x[:1])
    assert only.logprob is not None and only.logprob.top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_spoilt_row_fails_alone(bad: float, temperature: float) -> None:
    x = logits(3)
    rows = [
        request(str(i), temperature=temperature, seed=5, repetition_penalty=1.1) for i in range(3)
    ]
    expected = [d.token for d in draw(rows, x)]
    x[1, 3] = bad
    found = draw(
        [
            request(str(i), temperature=temperature, seed=5, repetition_penalty=1.1)
            for i in range(3)
        ],
        x,
    )
    assert [found[0].token, found[2].token] == [expected[0], expected[2]]
    assert found[1].token is None and "finite" in str(found[1].error)


def test_a_row_of_minus_infinity_is_an_error() -> None:
    assert draw([request()], torch.full((1, V), -math.inf))[0].error


def test_seeds_repeat_and_differ() -> None:
    x = logits(1) / 3

    def drawn(seed: int | None) -> list[int]:
        return sequence(20, x, temperature=1.0, seed=seed)

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(s)) for s in (1, 2, -1, None, None)}) == 5


def test_a_draw_depends_on_the_seed_and_the_place_alone() -> None:
    x, params = logits(1) / 3, {"temperature": 1.0, "seed": 4, "presence_penalty": 1.0}
    whole, sampler = sequence(9, x, **params), Sampler(V, torch.device("cpu"))
    for place in (5, 5, 2, 8):  # a step tried again, a request that came back
        r = request(**params)
        r.token_ids += whole[:place]
        assert draw([r], x, sampler)[0].token == whole[place]
        sampler.forget(r)


def test_forgetting_a_request_frees_its_state() -> None:
    sampler, r = Sampler(V, torch.device("cpu")), request(temperature=1.0, presence_penalty=1.0)
    draw([r], logits(1), sampler)
    assert sampler._seen and sampler._seeds
    sampler.forget(r)
    assert not sampler._seen and not sampler._seeds


CHOICES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3, 20]),
        "top_p": st.sampled_from([0.1, 0.8, 1.0]),
        "min_p": st.sampled_from([0.0, 0.3]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "frequency_penalty": st.sampled_from([0.0, 1.5]),
        "logit_bias": st.sampled_from([{}, {3: 5.0}]),
        "logprobs": st.sampled_from([None, 0, 2]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHOICES, min_size=1, max_size=6))
def test_a_row_never_depends_on_its_neighbours(choices: list[dict[str, Any]]) -> None:
    """Equal logits too: coarse values make many ties."""
    x = (logits(len(choices)) * 0.7).round()
    together = draw([request(str(i), **c) for i, c in enumerate(choices)], x)
    for i, c in enumerate(choices):
        [alone] = draw([request(str(i), **c)], x[i : i + 1])
        assert (alone.token, alone.logprob) == (together[i].token, together[i].logprob)
