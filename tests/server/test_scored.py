"""Completions with `echo` and `logprobs`, as evaluations ask for them: the official client and a
real server, held against the model's own logits.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import OpenAI

from qwenkit.llm import LLM, Logprob, TokenProb
from qwenkit.server.openai.scored import answer_logprobs, prompt_logprobs

MODEL = "tiny-instruct"
TEXTS = ["The sky is blue.", "12 + 30 = 42", "天空是蓝色的。🙂"]
WISH: Any = {"model": MODEL, "max_tokens": 0, "echo": True, "logprobs": 2, "temperature": 0}


@pytest.fixture(scope="module")
def api(live: Any, client_for: Callable[..., OpenAI]) -> OpenAI:
    return client_for(live)


def likely(llm: LLM, ids: list[int]) -> Any:
    """(N - 1, V): what comes after each token but the last."""
    return llm.logits(ids)[:-1, : llm.tokenizer.vocab_size].log_softmax(-1)


def check(llm: LLM, ids: list[int], found: Any, text: str) -> None:
    """The first `len(ids)` entries are those of the prompt `text`."""
    count, want = len(ids), likely(llm, ids)
    assert found.tokens[:count] == [llm.detokenize([i], skip_special=False) for i in ids]
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    own = want[range(count - 1), ids[1:]].tolist()
    assert found.token_logprobs[1:count] == pytest.approx(own, abs=0.05)
    for row, top, token in zip(want, found.top_logprobs[1:], ids[1:], strict=False):
        values, best = row.topk(2)
        assert max(top.values()) == pytest.approx(values[0].item(), abs=0.05)
        assert llm.detokenize([token], skip_special=False) in top
        if values[0] - values[1] > 0.2:
            assert llm.detokenize([int(best[0])], skip_special=False) == next(iter(top))
    for token, offset in zip(found.tokens[:count], found.text_offset, strict=False):
        assert "\ufffd" in token or text[offset:].startswith(token)


@pytest.mark.parametrize("form", ["texts", "lists"])
def test_prompts_are_scored(api: OpenAI, tiny: LLM, form: str) -> None:
    ids = [tiny.tokenize(text) for text in TEXTS]
    answer = api.completions.create(prompt=TEXTS if form == "texts" else ids, **WISH)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == TEXTS
    for own, text, choice in zip(ids, TEXTS, answer.choices, strict=True):
        assert choice.finish_reason == "length" and choice.logprobs
        assert len(choice.logprobs.tokens or []) == len(own)
        check(tiny, own, choice.logprobs, text)
    assert answer.usage and answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == sum(map(len, ids))


@pytest.mark.parametrize("form", ["text", "ids"])
def test_an_answer_goes_on_behind_the_scores(api: OpenAI, tiny: LLM, form: str) -> None:
    text = "Once upon"
    ids = tiny.tokenize(text)
    given: Any = ids if form == "ids" else text
    plain = api.completions.create(prompt=given, **{**WISH, "max_tokens": 4, "echo": False})
    answer = api.completions.create(prompt=given, **{**WISH, "max_tokens": 4, "n": 2})
    alone: Any = plain.choices[0].logprobs
    assert len(alone.tokens) == 4 and len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.text == text + plain.choices[0].text
        found: Any = choice.logprobs
        check(tiny, ids, found, choice.text)
        rest = slice(len(ids), None)
        assert found.tokens[rest] == alone.tokens
        assert found.text_offset[rest] == [len(text) + offset for offset in alone.text_offset]
        assert found.token_logprobs[rest] == pytest.approx(alone.token_logprobs, abs=0.05)


def test_as_an_evaluation_harness_ranks_answers(api: OpenAI, tiny: LLM) -> None:
    """lm-eval's local-completions: ids of question and answer, one token more, which it drops. That
    one is the end of the turn here, and has its entry like any other.
    """
    reasons = tiny.chat("What is 12 + 30?", temperature=0).text.removesuffix(" 42")
    question = [*tiny.render("What is 12 + 30?").ids, *tiny.tokenize(reasons)]
    prompts = [[*question, *tiny.tokenize(text)] for text in (" 57", " 42", " 12")]
    wish = {**WISH, "logprobs": 1, "max_tokens": 1, "seed": 1234}
    found, sums, count = (
        api.completions.create(prompt=prompts, **wish),
        list[float](),
        len(question),
    )
    for choice, ids in zip(found.choices, prompts, strict=True):
        rows: Any = choice.logprobs
        assert choice.finish_reason == "stop" and len(rows.tokens) == len(ids) + 1
        assert rows.tokens[-1] == "<|im_end|>" and rows.text_offset[-1] == len(choice.text)
        own, top = rows.token_logprobs[count:-1], rows.top_logprobs[count:-1]
        want, answer = likely(tiny, ids)[count - 1 :], ids[count:]
        sums.append(sum(own))
        assert sums[-1] == pytest.approx(want[range(len(answer)), answer].sum().item(), abs=0.1)
        greedy = all(p == max(each.values()) for p, each in zip(own, top, strict=True))
        assert greedy == (want.argmax(-1).tolist() == answer)
    assert sums.index(max(sums)) == 1


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"stream": True}, "stream", "unsupported_parameter"),
        ({"suffix": "b"}, "suffix", "unsupported_parameter"),
        ({"prompt": [[1], [10**9]]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1] * 2049}, "prompt", "context_length_exceeded"),
        ({"prompt": [1] * 2048, "max_tokens": 1}, "prompt", "context_length_exceeded"),
        ({"prompt": [[1] * 2000] * 16, "logprobs": 10}, "prompt", "invalid_value"),
        ({"prompt": [[1] * 2000] * 30, "n": 4}, "prompt", "invalid_value"),
        ({"max_tokens": 2, "extra_body": {"min_tokens": 3}}, "min_tokens", "invalid_value"),
    ],
    ids="stream suffix id context answer logprobs choices sampling".split(),
)
def test_what_is_wrong_is_named(api: OpenAI, more: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(**{**WISH, "prompt": "a", **more})
    assert (caught.value.param, caught.value.code) == (param, code), caught.value.message


def test_a_batch_scores_too(api: OpenAI, tiny: LLM) -> None:
    body = {**WISH, "prompt": TEXTS[0]}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    content = io.BytesIO(json.dumps(row).encode())
    file = api.files.create(file=("in.jsonl", content), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    while batch.status not in ("completed", "failed"):
        time.sleep(0.05)
        batch = api.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    record = json.loads(api.files.content(batch.output_file_id).read())
    assert record["response"]["body"]["choices"][0]["logprobs"]["token_logprobs"][0] is None


def test_parts_of_characters_and_special_tokens_have_offsets(tiny: LLM) -> None:
    """Offsets count characters of the text, in which special tokens do not stand."""
    llm = tiny
    ids = [*llm.tokenize("<|im_start|>", allow_special=True), *llm.tokenize("a🙂b")]
    (scores,) = llm.scorer.score([ids], top=20)
    found = prompt_logprobs(llm.tokenizer, scores)
    text = llm.detokenize(ids)
    assert text == "a🙂b" and found["text_offset"][:2] == [0, 0]
    parts = [
        at
        for at, token in zip(found["text_offset"], found["tokens"], strict=True)
        if "\ufffd" in token
    ]
    assert parts and set(parts) == {1} and found["text_offset"][-1] == 2


def test_of_tokens_with_the_same_text_the_likeliest_is_told() -> None:
    top = (TokenProb(1, b"\xe4", -0.5), TokenProb(2, b"\xe5", -1.0), TokenProb(3, b"a", -2.0))
    found = answer_logprobs([Logprob(4, b"b", -9.0, top)], 3)
    assert found["top_logprobs"] == [{"\ufffd": -0.5, "a": -2.0, "b": -9.0}]
