"""`POST /v1/completions`: texts or token ids go on. Each of several prompts has its own choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.llm import LLM, Completion, Scores, StreamDelta, Timing, Usage
from qwenkit.options.serve import ServeOptions
from qwenkit.prompt.fim import fim_ids
from qwenkit.server.body import read
from qwenkit.server.document import takes
from qwenkit.server.errors import bad_value, unsupported
from qwenkit.server.merge import merged, together
from qwenkit.server.openai.chat_answers import new_id
from qwenkit.server.openai.fields import SamplingFields
from qwenkit.server.openai.scored import (
    Lists,
    answer_logprobs,
    choice_logprobs,
    prompt_logprobs,
    scored,
)
from qwenkit.server.openai.usage import (
    Timings,
    UsageBody,
    booked,
    timings_body,
    usage_body,
    watched,
)
from qwenkit.server.service import Call, Service, call_of, service_of
from qwenkit.server.sse import EventStream, JsonResponse, event

router = APIRouter(tags=["generation"])
MAX_CHOICES = 128
Ids = Annotated[list[int], Field(max_length=1 << 20, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)]
IdLists = Annotated[list[Ids], Field(max_length=MAX_CHOICES, fail_fast=True)]


def form_of(prompt: Any) -> str:
    """Which of the four a prompt wants to be, by its first entry."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else ""
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "ids"


Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[IdLists, Tag("lists")],
    Discriminator(form_of),
]


class CompletionRequest(SamplingFields):
    """Prompts to be continued."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, le=1 << 24)
    best_of: int | None = Field(None, ge=1, le=128)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: str | None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The single prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]

    @property
    def scores(self) -> bool:
        """Whether log-probabilities of the prompts are asked for."""
        return bool(self.echo) and self.logprobs is not None

    def check_limits(self, options: ServeOptions) -> None:
        super().check_limits(options)
        prompts, n = self.prompts, self.n or 1
        if not prompts or not all(prompts):
            raise bad_value("prompt", "Invalid 'prompt': it is empty.", "empty_array")
        if len(prompts) > options.max_prompts or len(prompts) * n > MAX_CHOICES:
            most = min(options.max_prompts, MAX_CHOICES // n)
            text = f"Invalid 'prompt': with n = {n} it must have at most {most} entries."
            raise bad_value("prompt", text, "array_above_max_length")
        if self.best_of not in (None, n):
            text = f"best_of is {self.best_of}, but nothing is ranked here: ask for n and choose."
            raise unsupported("best_of", text)
        if self.scores:
            for name in ("stream", "suffix"):
                if getattr(self, name):
                    raise unsupported(name, f"'{name}' does not go with echo and logprobs.")
        elif self.max_tokens == 0:
            text = "Invalid 'max_tokens': 0 is only for echo with logprobs. Expected at least 1."
            raise bad_value("max_tokens", text, "integer_below_min_value")
        if self.suffix is not None and not all(isinstance(each, str) for each in prompts):
            raise bad_value("suffix", "suffix is only for prompts that are text.")

    def questions(self, call: Call, service: Service) -> list[dict[str, Any]]:
        """Keywords for `LLM.astream`, for each prompt. Errors: ApiError."""
        adapter = service.check_model(self.model)
        self.check_limits(service.options)
        service.check_size((p for p in self.prompts if isinstance(p, str)), "prompt")
        shared = {**self.sampling(call, service.options), "adapter": adapter}
        if self.logprobs is not None:
            shared["logprobs"] = self.logprobs
        tokenizer, found = service.llm.tokenizer, []
        for prompt in self.prompts:
            if self.suffix and isinstance(prompt, str):
                prompt = fim_ids(tokenizer, prompt, self.suffix)
            found.append({"prompt": prompt, **shared})
        return found

    def echoes(self, llm: LLM) -> list[str]:
        """What stands before each answer."""
        if not self.echo:
            return [""] * len(self.prompts)
        return [each if isinstance(each, str) else llm.detokenize(each) for each in self.prompts]


class CompletionLogprobs(BaseModel):
    """Four lists of the same length, one entry for each generated token; with `echo` before them
    one for each token of the prompt, null for its first.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(BaseModel):
    """The whole answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
    timings: Timings
    system_fingerprint: str | None


class TextChunk(BaseModel):
    """One event of a stream. The last one has no choices, but the usage, if that was asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None = None
    timings: Timings | None = None
    system_fingerprint: str | None


@router.post("/v1/completions", **takes(CompletionRequest, TextCompletion, events=TextChunk))
async def create(request: Request) -> Response:
    """Continue prompts."""
    service, call = service_of(request), call_of(request)
    body = await read(request, CompletionRequest)
    if body.stream:
        return EventStream(call, stream(service, call, body))
    found = await call.attend(answer(service, call, body), request.receive)
    if not body.scores:
        return JsonResponse(found)
    content = await asyncio.to_thread(to_json, found)
    return Response(content, media_type="application/json")


async def answer(service: Service, call: Call, body: CompletionRequest) -> dict[str, Any]:
    """The whole answer. Errors: ApiError, QwenkitError."""
    questions = body.questions(call, service)
    least = 1 if body.max_tokens == 0 else body.max_tokens
    scores: list[Scores] = []
    with service.metered(call, least, len(questions) * (body.n or 1)):
        if body.scores:
            scores, results = await scored(service, questions, body.max_tokens)
        else:
            results = await together([service.llm.agenerate(**question) for question in questions])
        for result in results:
            booked(service, call, result)
    usage, timing = _sums([result.usage for result in results], [r.timing for r in results])
    work = (body, service.llm, results, scores)
    return {
        **_head(body.model),
        "choices": await asyncio.to_thread(_choices, *work) if scores else _choices(*work),
        "usage": usage_body(usage),
        "timings": timings_body(usage, timing),
    }


async def stream(
    service: Service, call: Call, body: CompletionRequest
) -> AsyncGenerator[bytes, None]:
    """The answer in events. Errors, with the first event: ApiError, QwenkitError."""
    questions = body.questions(call, service)
    head, echoes, n = _head(body.model), body.echoes(service.llm), body.n or 1
    offsets: dict[int, int] = {}
    usages, timings = list[Usage](), list[Timing]()
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    sources = [watched(service, call, service.llm.astream(**question)) for question in questions]
    with service.metered(call, body.max_tokens, len(questions) * n):
        async with aclosing(merged(sources)) as deltas:
            async for number, delta in deltas:
                index = number * n + delta.index
                text = delta.text
                if index not in offsets:
                    offsets[index], text = 0, echoes[number] + text
                chunk = {**head, "choices": [_piece(index, text, delta, offsets[index])]}
                offsets[index] += len(text)
                yield event({**chunk, "usage": None} if wants_usage else chunk)
                if delta.usage is not None and delta.timing is not None:
                    usages.append(delta.usage)
                    timings.append(delta.timing)
    if wants_usage:
        usage, timing = _sums(usages, timings)
        last = {"choices": [], "usage": usage_body(usage), "timings": timings_body(usage, timing)}
        yield event({**head, **last})


def _head(model: str) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def _sums(usages: Sequence[Usage], timings: Sequence[Timing]) -> tuple[Usage, Timing]:
    usage = Usage(
        sum(each.prompt_tokens for each in usages),
        sum(each.completion_tokens for each in usages),
        sum(each.cached_tokens for each in usages),
    )
    timing = Timing(min(each.first for each in timings), max(each.total for each in timings))
    return usage, timing


def _choices(
    body: CompletionRequest, llm: LLM, results: Sequence[Completion], scores: Sequence[Scores]
) -> list[dict[str, Any]]:
    """In a thread where there are scores: they may be many."""
    echoes = [llm.detokenize(each.ids) for each in scores] or body.echoes(llm)
    known = [prompt_logprobs(llm.tokenizer, each) for each in scores]
    prompts: Sequence[Lists | None] = known or [None] * len(results)
    return [
        {
            "index": number * len(result.choices) + choice.index,
            "text": echo + choice.content,
            "logprobs": choice_logprobs(choice, prompt, len(echo)),
            "finish_reason": choice.finish_reason,
        }
        for number, (result, echo, prompt) in enumerate(zip(results, echoes, prompts, strict=True))
        for choice in result.choices
    ]


def _piece(index: int, text: str, delta: StreamDelta, offset: int) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": answer_logprobs(delta.logprobs, offset) if delta.logprobs else None,
        "finish_reason": delta.finish_reason,
    }
