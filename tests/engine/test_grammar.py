"""Requests with a matcher: the mask is applied last, follows the request, and ends only its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qwenkit.engine import Engine, Request, RequestOutput, SamplingParams
from qwenkit.engine.grammar import allowed_next, constrain
from qwenkit.engine.sampler import Draw, Sampler
from qwenkit.errors import EngineError
from qwenkit.model.qwen import Qwen

V, END = 128, 5
Drain = Callable[[Engine], dict[str, list[RequestOutput]]]


class Words:
    """Lets through one of the given words, letter by letter, and then `END`; knows no tokenizer."""

    def __init__(self, *words: tuple[int, ...], fails_at: int = 10**9) -> None:
        self.words, self.done, self.fails_at = words, list[int](), fails_at

    def next(self) -> set[int]:
        n = len(self.done)
        left = [w for w in self.words if list(w[:n]) == self.done]
        return {w[n] if len(w) > n else END for w in left}

    def fill(self, row: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        if len(self.done) == self.fails_at:
            raise EngineError("The grammar allows no token here.")
        bits = np.zeros(32 * len(row), np.bool_)
        bits[list(self.next())] = True
        row[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token: int) -> bool:
        if token == END or token not in self.next():
            return False
        self.done.append(token)
        return True

    def rollback(self, count: int) -> None:
        del self.done[len(self.done) - count :]


def request(matcher: Words | None, name: str = "a", **params: Any) -> Request:
    params = {"max_tokens": 20, "stop_token_ids": (END,), **params}
    return Request(name, (1, 2), SamplingParams(**params), matcher=matcher)


def draw(r: Request, x: torch.Tensor) -> Draw:
    return Sampler(V, torch.device("cpu")).sample([r], x.clone())[0]


def flat(**high: float) -> torch.Tensor:
    x = torch.zeros(1, V)
    for token, value in high.items():
        x[0, int(token[1:])] = value
    return x


def test_the_mask_comes_last() -> None:
    words = Words((10, 11), (20, 21))
    assert draw(request(words), flat(_30=9.0, _20=1.0)).token == 20
    assert draw(request(words, logit_bias={30: 100.0, 10: 3.0}), flat()).token == 10
    assert draw(request(words, logit_bias={10: -100.0, 20: -100.0}), flat(_20=1.0)).token == 20
    penalised = request(Words((1,), (20,)), repetition_penalty=50.0)
    assert draw(penalised, flat(_1=5.0, _20=1.0)).token == 20


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 5.0},
        {"temperature": 100.0, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 1.0, "min_p": 0.01},
        {"temperature": 2.0, "top_k": 3, "top_p": 0.5},
    ],
)
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_only_legal_tokens_are_ever_drawn(
    params: dict[str, Any], uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the random number is at an end of its range."""
    monkeypatch.setattr(Sampler, "_uniform", lambda self, request: uniform)
    x = torch.randn(1, V, generator=torch.Generator().manual_seed(1)) * 4
    legal = {(7,), (50,), (51,), (120,)}
    assert (draw(request(Words(*legal), **params), x).token,) in legal


def test_log_probabilities_are_the_models_own() -> None:
    x = flat(_30=9.0, _20=1.0)
    found = draw(request(Words((20,)), logprobs=1), x)
    assert found.token == 20 and found.logprob is not None
    assert found.logprob.logprob == pytest.approx(float(x[0].log_softmax(-1)[20]))
    assert found.logprob.top[0][0] == 30


def test_min_tokens_keeps_the_end_away_only_while_there_is_a_choice() -> None:
    r = request(Words((10,), (10, 11)), min_tokens=5)
    r.token_ids.append(10)
    assert draw(r, flat(**{f"_{END}": 9.0})).token == 11
    r.token_ids.append(11)
    assert draw(r, flat(_30=9.0)).token == END


def test_it_follows_the_tokens_of_the_request() -> None:
    words = Words((10, 11, 12))
    r = request(words)
    r.token_ids += [10, 11]
    assert np.flatnonzero(allowed_next(r, V)).tolist() == [12]
    assert np.flatnonzero(allowed_next(r, V)).tolist() == [12]  # asked again: nothing changes
    assert words.done == [10, 11] and r.num_matched == 2
    r.token_ids.append(99)
    with pytest.raises(EngineError, match="does not fit"):
        allowed_next(r, V)


def test_rows_without_a_matcher_stay_as_they_are() -> None:
    x = torch.randn(3, V)
    before = x.clone()
    assert constrain([request(None), request(Words((7,))), request(None)], x) == {}
    assert torch.equal(x[[0, 2]], before[[0, 2]])
    assert x[1].isfinite().nonzero().tolist() == [[7]] and x[1, 7] == before[1, 7]


def answers(outputs: dict[str, list[RequestOutput]]) -> dict[str, list[int]]:
    return {name: [i for o in each for i in o.new_ids] for name, each in outputs.items()}


def test_one_batch_with_and_without(model: Qwen, drain: Drain) -> None:
    engine = Engine(model, num_blocks=64)
    alone = Engine(model, num_blocks=64)
    alone.add(request(None, "free"))
    expected = answers(drain(alone))["free"]
    engine.add(request(None, "free"))
    engine.add(request(Words((40, 41, 42), (50, 51)), "word"))
    engine.add(request(Words((60, 61, 62)), "cut", max_tokens=2))
    engine.add(request(Words((70, 71, 72), fails_at=2), "dead"))
    outputs = drain(engine)
    found = answers(outputs)
    assert found["free"] == expected
    assert found["word"] in ([40, 41, 42, END], [50, 51, END])
    assert found["cut"] == [60, 61] and found["dead"] == [70, 71]
    reasons = {name: each[-1].finish_reason for name, each in outputs.items()}
    assert reasons["word"] == "stop" and reasons["cut"] == "length" and reasons["dead"] == "error"
    last = outputs["dead"][-1]
    assert last.code == "grammar" and last.error == "The grammar allows no token here."
    assert engine.scheduler.pool.num_free == 64


def test_a_paused_request_goes_on_where_it_was(model: Qwen, drain: Drain) -> None:
    word = tuple(range(30, 60))

    def run(num_blocks: int) -> tuple[dict[str, list[int]], int]:
        engine = Engine(model, num_blocks=num_blocks, block_size=4, prefix_cache=False)
        for i in range(3):
            engine.add(request(Words(word), str(i), max_tokens=32))
        return answers(drain(engine)), engine.stats().preemptions

    roomy, tight = run(64), run(14)
    assert roomy == ({str(i): [*word, END] for i in range(3)}, 0)
    assert tight[0] == roomy[0] and tight[1] > 0


def test_a_step_that_is_tried_again_accepts_nothing_twice(
    model: Qwen, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, num_blocks=64)
    for name in ("a", "b"):
        engine.add(request(Words((40, 41, 42)), name))
    forward, calls = engine.runner.forward, []

    def flaky(plan: Any) -> torch.Tensor:
        calls.append(len(plan.spans))
        if len(calls) == 3:
            raise RuntimeError("once")
        return forward(plan)

    monkeypatch.setattr(engine.runner, "forward", flaky)
    assert answers(drain(engine)) == {"a": [40, 41, 42, END], "b": [40, 41, 42, END]}
    assert 1 in calls
