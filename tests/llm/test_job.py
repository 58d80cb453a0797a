"""What becomes of several tokens of one step: the text ends where it would have ended token by
token.
"""

from __future__ import annotations

import itertools

import pytest

from qwenkit.engine import RequestOutput, SamplingParams, TokenLogprob
from qwenkit.llm.job import Job, Query
from qwenkit.llm.results import Completion
from qwenkit.llm.sampling import Resolved
from qwenkit.prompt.tokenizer import Tokenizer

TEXT = "one two three four"


def complete(
    tokenizer: Tokenizer, stop: tuple[str, ...], each: int, reason: str | None = None
) -> tuple[Completion, list[str]]:
    """A job that gets the text in steps of `each` tokens; the last one ends it, if it gets there.
    And the ids that it asked to have aborted.
    """
    query = Query([1], Resolved(SamplingParams(max_tokens=99, logprobs=0), 1, stop))
    job = Job([query], tokenizer, itertools.count(), live=True)
    ids, aborted = tokenizer.encode(TEXT), list[str]()
    for at in range(0, len(ids), each):
        new = ids[at : at + each]
        last = at + each >= len(ids)
        if last and reason == "stop":
            new.append(258)
        output = RequestOutput("0", new, [TokenLogprob(i, -1.0) for i in new])
        output.finish_reason = reason if last else None  # type: ignore[assignment]
        output.num_drafted, output.num_accepted = 3 * at, at
        _, unwanted = job.push([output])
        aborted += unwanted
        if not job.open_ids:
            break
    return job.results(Completion)[0], aborted


@pytest.mark.parametrize("each", [1, 2, 3, 5, 100])
def test_a_stop_string_ends_ids_logprobs_and_usage_with_it(tokenizer: Tokenizer, each: int) -> None:
    result, aborted = complete(tokenizer, ("two th", "four"), each, "length")
    choice = result.choices[0]
    assert (result.text, result.finish_reason) == ("one ", "stop")
    assert tokenizer.decode(list(choice.ids)) == "one two th"
    assert choice.logprobs is not None and len(choice.logprobs) == len(choice.ids) == 10
    assert result.usage.completion_tokens == 10
    assert aborted == ([] if each == 100 else ["0"])


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("stop", [(), ("zzz",)])
@pytest.mark.parametrize("each", [1, 4, 100])
def test_without_a_hit_everything_counts(
    tokenizer: Tokenizer, each: int, stop: tuple[str, ...], reason: str
) -> None:
    result, _ = complete(tokenizer, stop, each, reason)
    assert (result.text, result.finish_reason) == (TEXT, reason)
    assert len(result.choices[0].ids) == len(TEXT) == len(result.logprobs or ())
    assert result.usage.completion_tokens == len(TEXT) + (reason == "stop")


def test_usage_tells_what_was_guessed(tokenizer: Tokenizer) -> None:
    usage = complete(tokenizer, (), 9, "length")[0].usage
    assert (usage.draft_tokens, usage.accepted_tokens) == (27, 9)
