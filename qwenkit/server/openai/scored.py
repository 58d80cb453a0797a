"""Completions with `echo` and `logprobs`: how likely each token of the prompt is, before what the
model goes on with. That is how evaluations rank given answers, with `max_tokens` 0 or 1.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import Iterable, Sequence
from typing import Any

from qwenkit.llm import Choice, Completion, Logprob, Scores, Timing, Usage
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.server.merge import together
from qwenkit.server.service import Service

Lists = dict[str, list[Any]]
"""`CompletionLogprobs`."""


async def scored(
    service: Service, questions: Sequence[dict[str, Any]], max_tokens: int | None
) -> tuple[list[Scores], list[Completion]]:
    """Scores and answers of prompts that are keywords of `LLM.agenerate`; with 0 `max_tokens` the
    answers are empty. Errors: QwenkitError.
    """
    llm, begun = service.llm, time.monotonic()
    n, top = questions[0].get("n", 1), questions[0]["logprobs"]
    most = max(service.options.max_embedding_tokens // (n * max(top, 1)), 1)
    prompts = [question["prompt"] for question in questions]
    sizes: Any = {"answer": 1 if max_tokens is None else max_tokens, "max_tokens": most}
    ids = await asyncio.to_thread(llm.scorer.ids, prompts, **sizes)
    works: list[Any] = [llm.scorer.ascore(ids, top=top, adapter=questions[0]["adapter"])]
    if max_tokens != 0:
        for question, own in zip(questions, ids, strict=True):
            works.append(llm.agenerate(**{**question, "prompt": own}))
    scores, *answers = await together(works)
    took = time.monotonic() - begun
    return scores, answers or [_unanswered(len(own), n, took) for own in ids]


def _unanswered(tokens: int, n: int, took: float) -> Completion:
    choices = tuple(Choice(index, "", "length", logprobs=()) for index in range(n))
    return Completion(choices, Usage(tokens, 0), Timing(took, took))


def prompt_logprobs(tokenizer: Tokenizer, scores: Scores) -> Lists:
    """Of a prompt's tokens; there is nothing to tell of the first one. Offsets are those in the
    decoded text, where special tokens have no length.
    """
    decoder, offset, offsets = codecs.getincrementaldecoder("utf-8")("replace"), 0, list[int]()
    pieces = [tokenizer.id_to_bytes(i) for i in scores.ids]
    for index, piece in zip(scores.ids, pieces, strict=True):
        offsets.append(offset)
        if index not in tokenizer.skipped_ids:
            offset += len(decoder.decode(piece))
    tokens, own = [_text(piece) for piece in pieces], scores.logprobs.tolist()
    rows = zip(tokens[1:], own, scores.top_ids.tolist(), scores.top.tolist(), strict=True)
    tops = [
        _top([(_text(tokenizer.id_to_bytes(i)), p) for i, p in zip(*top, strict=True)], (text, own))
        for text, own, *top in rows
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [None, *own],
        "top_logprobs": [None, *tops],
        "text_offset": offsets,
    }


def answer_logprobs(found: Sequence[Logprob], offset: int) -> Lists:
    """Of an answer's tokens, whose text begins at `offset`."""
    offsets = list[int]()
    for each in found:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": [
            _top(((top.token, top.logprob) for top in each.top), (each.token, each.logprob))
            for each in found
        ],
        "text_offset": offsets,
    }


def choice_logprobs(choice: Choice, prompt: Lists | None, offset: int) -> Lists | None:
    """Of a choice; behind a scored prompt also of the token that ended it, as evaluations count on
    an entry for each token that was generated.
    """
    if choice.logprobs is None:
        return None
    if prompt is None:
        return answer_logprobs(choice.logprobs, offset)
    ends = () if choice.end is None else (choice.end,)
    answer = answer_logprobs((*choice.logprobs, *ends), offset)
    return {name: prompt[name] + answer[name] for name in prompt}


def _top(likely: Iterable[tuple[str, float]], own: tuple[str, float]) -> dict[str, float]:
    """The most likely tokens, in falling order, and always the chosen one. Of several with the same
    text (parts of characters) the likeliest counts.
    """
    found = dict[str, float]()
    for text, logprob in (*likely, own):
        found.setdefault(text, logprob)
    return found


def _text(token: bytes) -> str:
    return token.decode("utf-8", errors="replace")
