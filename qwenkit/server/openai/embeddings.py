"""`POST /v1/embeddings`: texts or token ids as vectors of length 1."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.llm import Embeddings, Pooling
from qwenkit.options.serve import ServeOptions
from qwenkit.server.body import read
from qwenkit.server.document import takes
from qwenkit.server.errors import bad_value
from qwenkit.server.openai.completions import form_of
from qwenkit.server.openai.fields import Label, Name, Strict
from qwenkit.server.service import Call, Service, call_of, service_of

router = APIRouter(tags=["embeddings"])
MAX_INPUTS = 2048
Ids = Annotated[list[int], Field(max_length=1 << 20, fail_fast=True)]
Inputs = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("lists")],
    Discriminator(form_of),
]


class EmbeddingRequest(Strict):
    """Inputs to be embedded. `pooling`: of the last token, or the mean of all."""

    model: Name
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=1 << 16)
    pooling: Pooling | None = None
    user: Label | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The single inputs."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [[i for i in self.input if isinstance(i, int)]]
        return [each for each in self.input if not isinstance(each, int)]

    def check_limits(self, options: ServeOptions) -> None:
        """Errors: ApiError."""
        inputs = self.inputs
        if not inputs or not all(inputs):
            raise bad_value("input", "Invalid 'input': it is empty.", "empty_array")
        if len(inputs) > options.max_inputs:
            text = f"Invalid 'input': it must have at most {options.max_inputs} entries."
            raise bad_value("input", text, "array_above_max_length")

    def question(self, service: Service) -> dict[str, Any]:
        """Keywords for `LLM.aembed`. Errors: ApiError."""
        adapter = service.check_model(self.model)
        self.check_limits(service.options)
        inputs, most = self.inputs, service.options.max_embedding_tokens
        texts = [each for each in inputs if isinstance(each, str)]
        for text in texts:
            service.check_size([text], "input")
        least = service.least_tokens(sum(map(len, texts)))
        least += sum(len(each) for each in inputs if not isinstance(each, str))
        if least > most:
            text = f"Invalid 'input': it has at least {least} tokens, but at most {most} are taken "
            raise bad_value("input", text + "at once.", "array_above_max_length")
        return {
            "inputs": inputs,
            "dimensions": self.dimensions,
            "max_tokens": most,
            "adapter": adapter,
            "pooling": self.pooling or service.options.pooling,
        }


class EmbeddingBody(BaseModel):
    """A vector: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """One vector for each input, in order."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingBody]
    usage: EmbeddingUsage


@router.post("/v1/embeddings", **takes(EmbeddingRequest, EmbeddingList))
async def create(request: Request) -> Response:
    """Texts → vectors."""
    service, call = service_of(request), call_of(request)
    body = await read(request, EmbeddingRequest)
    found = await call.attend(answer(service, call, body), request.receive)
    content = await asyncio.to_thread(to_json, found)
    return Response(content, media_type="application/json")


async def answer(service: Service, call: Call, body: EmbeddingRequest) -> dict[str, Any]:
    """The whole answer. Errors: ApiError, QwenkitError."""
    question = body.question(service)
    with service.metered(call, 1):
        result = await service.llm.aembed(**question)
        call.prompt_tokens += result.prompt_tokens
    return await asyncio.to_thread(_list, result, body)


def _list(result: Embeddings, body: EmbeddingRequest) -> dict[str, Any]:
    rows = result.vectors.numpy().astype("<f4", copy=False)
    if body.encoding_format == "base64":
        vectors: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in rows]
    else:
        vectors = rows.tolist()
    used = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": number, "embedding": vector}
            for number, vector in enumerate(vectors)
        ],
        "usage": used,
    }
