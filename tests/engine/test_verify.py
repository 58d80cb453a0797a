"""Draft tokens against what is drawn, with a scripted sampler; what fails leaves no trace."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qwenkit.engine.request import Request, SamplingParams
from qwenkit.engine.sampler import Draw, Sampler
from qwenkit.engine.scheduler import Span
from qwenkit.engine.verify import verify

V = 16


def span(name: str, drafts: list[int], **params: object) -> Span:
    request = Request(name, [1, 2], SamplingParams(max_tokens=50, **params))  # type: ignore[arg-type]
    return Span(request, 1, 1 + len(drafts), True, drafts)


def rows(*likeliest: int) -> Tensor:
    """Logits whose greedy tokens are these."""
    x = torch.zeros(len(likeliest), V)
    x[torch.arange(len(likeliest)), torch.tensor(likeliest)] = 5.0
    return x


def tokens(draws: list[list[Draw]]) -> list[list[int | None]]:
    return [[draw.token for draw in each] for each in draws]


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(V, torch.device("cpu"))


def test_right_drafts_and_the_token_behind_them(sampler: Sampler) -> None:
    spans = [span("a", [4, 5, 6]), span("b", []), span("c", [7, 8])]
    found = verify(sampler, spans, rows(4, 5, 9, 3, 1, 7, 8, 2))
    assert tokens(found) == [[4, 5, 9], [1], [7, 8, 2]]
    assert [s.passed for s in spans] == [2, 0, 2]
    assert all(s.request.token_ids == [1, 2] for s in spans), "`commit` books them"


def test_a_stop_id_ends_the_step_even_when_it_was_guessed(sampler: Sampler) -> None:
    ends = span("a", [4, 5, 6], stop_token_ids=(5,))
    assert tokens(verify(sampler, [ends], rows(4, 5, 6, 7))) == [[4, 5]]
    assert ends.passed == 1
    late = span("b", [4, 5, 6], stop_token_ids=(5,), min_tokens=3)
    assert tokens(verify(sampler, [late], rows(4, 5, 6, 7)))[0][1] != 5


def test_each_place_has_its_own_penalties(sampler: Sampler) -> None:
    x = rows(4, 4, 4)
    x[:, 6] = 4.0
    found = verify(sampler, [span("a", [4, 6], presence_penalty=2.0)], x)
    assert tokens(found) == [[4, 6, 4]]


def test_an_error_behind_a_right_draft_comes_after_it(sampler: Sampler) -> None:
    x = rows(4, 5, 6)
    x[1] = torch.nan
    bad, good = span("a", [4, 5]), span("b", [])
    found = verify(sampler, [bad, good], torch.cat((x, rows(9))))
    assert tokens(found) == [[4, None], [9]] and found[0][1].code == "not_finite"
    assert bad.passed == 1


class Even:
    """Only even tokens; remembers what it was told."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def fill(self, row: Sequence[int]) -> None:
        row[:] = 0x55555555  # type: ignore[index]

    def accept(self, token: int) -> bool:
        self.accepted.append(token)
        return token % 2 == 0

    def rollback(self, count: int) -> None:
        del self.accepted[len(self.accepted) - count :]


def test_a_grammar_holds_at_every_place(sampler: Sampler) -> None:
    one = span("a", [4, 5, 6])
    one.request.matcher = matcher = Even()
    x = rows(4, 5, 6, 7)
    x[:, 8] = 1.0
    assert tokens(verify(sampler, [one], x)) == [[4, 8]], "an odd draft is never what is drawn"
    assert matcher.accepted == [4]


def test_what_fails_half_way_can_be_tried_again(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = span("a", [4, 6, 4], presence_penalty=2.0, frequency_penalty=0.5)
    one.request.matcher = matcher = Even()
    x = rows(4, 4, 4, 4)
    x[:, 6] = 4.0
    expected = tokens(verify(Sampler(V, torch.device("cpu")), [one], x.clone()))
    matcher.rollback(len(matcher.accepted))
    one.request.num_matched = 0
    calls, sample = [0], sampler.sample

    def failing(requests: Sequence[Request], logits: Tensor) -> list[Draw]:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError("kernel")
        return sample(requests, logits)

    monkeypatch.setattr(sampler, "sample", failing)
    with pytest.raises(RuntimeError):
        verify(sampler, [one], x.clone())
    assert one.request.token_ids == [1, 2] and not matcher.accepted
    assert tokens(verify(sampler, [one], x.clone())) == expected and len(expected[0]) > 2
