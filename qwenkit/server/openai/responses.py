"""`/v1/responses`: create (whole, streamed, in the background), read, delete, cancel, list inputs.

`answer` serves every way in: HTTP here, rows of a batch elsewhere. A stream that fails tells it in
an `error` event and a `response.failed`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, contextmanager
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from qwenkit.errors import QwenkitError
from qwenkit.server.body import read
from qwenkit.server.document import ERRORS, takes
from qwenkit.server.errors import ApiError, as_api_error, bad_value, unsupported
from qwenkit.server.logs import log_bug, log_request
from qwenkit.server.openai.paging import PAGING, page
from qwenkit.server.openai.responses_answers import Answer, ResponseEvent, ResponseObject
from qwenkit.server.openai.responses_fields import ResponseRequest, renamed
from qwenkit.server.openai.usage import watched
from qwenkit.server.service import Call, Service, call_of, service_of
from qwenkit.server.sse import EventStream, JsonResponse, event
from qwenkit.server.stored import items_of

router = APIRouter(tags=["responses"])
READS: dict[str, Any] = {"responses": ERRORS}


class Deleted(BaseModel):
    """It is gone."""

    id: str
    object: Literal["response"]
    deleted: bool


class ItemList(BaseModel):
    """Items, and whether there are more."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Question:
    """A request that has been checked, and the answer that it grows."""

    def __init__(
        self,
        service: Service,
        call: Call,
        body: ResponseRequest,
        earlier: list[dict[str, Any]],
        held: int,
    ) -> None:
        """`earlier`: the items of the conversation so far; `held`: bytes of the body and of these
        items. Errors: ApiError.
        """
        self.service, self.call, self.body, self.held = service, call, body, held
        chat, self._places = body.chat(earlier)
        with self.renaming():
            self._asked = chat.question(call, service)
        call.spelling = {}  # `renaming` knows better
        self.answer = Answer(body, service.llm.generation)
        prefix = self.answer.response["id"].replace("resp_", "item_")
        self._items = [
            {"id": f"{prefix}_{number}", **item} for number, item in enumerate(body.items)
        ]

    @contextmanager
    def renaming(self) -> Any:
        """Errors under the names of this endpoint."""
        try:
            yield
        except (QwenkitError, ApiError) as error:
            raise renamed(error, self._places, self.call) from error

    async def events(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Errors: ApiError."""
        service, call = self.service, self.call
        with self.renaming(), service.metered(call, self.body.max_output_tokens):
            async with aclosing(watched(service, call, service.llm.astream(**self._asked))) as news:
                async for delta in news:
                    events = list(self.answer.of(delta))
                    if delta.usage is not None:
                        self.keep()
                    yield events

    async def run(self) -> dict[str, Any]:
        """The whole response. Errors: ApiError."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.answer.response

    def keep(self, work: Any = None) -> None:
        """Store it as it is now, if it is to be stored."""
        if self.answer.response["store"]:
            tenant, held = self.call.caller.tenant, self.held if work else 0
            self.service.responses.put(tenant, self.answer.response, self._items, work, held)

    @property
    def size(self) -> int:
        """Bytes that it keeps while it is answered in the background."""
        kept = (self.answer.response, self._items)
        return self.held + sum(len(to_json(each)) for each in kept)


async def question_of(service: Service, call: Call, body: ResponseRequest) -> Question:
    """Errors: ApiError."""
    chain = service.responses.chain(call.caller.tenant, body.previous_response_id)
    earlier = await asyncio.to_thread(items_of, chain) if chain else []  # it may be megabytes
    held = call.body_bytes + sum(each.size for each in chain)
    return Question(service, call, body, earlier, held)


class TypedStream(EventStream):
    """Ends without `[DONE]`, and tells errors in typed events."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.call, _encoded(question), end=b"")
        self._question = question

    async def _fail(self, error: Exception, send: Send) -> None:
        told = as_api_error(error, self._call.request_id)
        if told.status == 500 and not isinstance(error, ApiError):
            log_bug(self._call, error)
        self._call.error = told
        events = self._question.answer.failed(told)
        body = b"".join(event(each, each["type"]) for each in events)
        await send({"type": "http.response.body", "body": body, "more_body": False})


async def _encoded(question: Question) -> AsyncGenerator[bytes, None]:
    async with aclosing(question.events()) as events:
        async for some in events:
            yield b"".join(event(each, each["type"]) for each in some)


async def answer(service: Service, call: Call, body: ResponseRequest) -> dict[str, Any]:
    """The whole answer. Errors: ApiError."""
    if body.background:
        raise bad_value("background", "background is only for requests of their own.")
    return await (await question_of(service, call, body)).run()


@router.post(
    "/v1/responses", **takes(ResponseRequest, ResponseObject, events=ResponseEvent, done=False)
)
async def create(request: Request) -> Response:
    """Answer an input."""
    service, call = service_of(request), call_of(request)
    body = await read(request, ResponseRequest)
    if body.background:
        return JsonResponse(await in_background(service, call, body))
    question = await question_of(service, call, body)
    if body.stream:
        return TypedStream(question)
    return JsonResponse(await call.attend(question.run(), request.receive))


async def in_background(service: Service, call: Call, body: ResponseRequest) -> dict[str, Any]:
    """Begin a response; its state. Errors: ApiError."""
    tenant, most = call.caller.tenant, service.options.max_background
    service.responses.check_background(tenant, call.body_bytes, most)
    work = Call()  # the request ends now, and this goes on
    work.caller, work.body_bytes = call.caller, call.body_bytes
    question = await question_of(service, work, body)
    service.responses.check_background(tenant, question.size, most)  # others came meanwhile
    question.keep(work)
    task = asyncio.ensure_future(_work(service, question))
    service.tasks.add(task)
    task.add_done_callback(service.tasks.discard)
    return dict(question.answer.response)


async def _work(service: Service, question: Question) -> None:
    call, grown = question.call, question.answer
    service.calls.add(call)  # a drain waits for it, and ends it like any other
    try:
        grown.response["status"] = "in_progress"
        question.keep(call)
        await call.attend(question.run())
    except ApiError as error:
        grown.fail(error, "cancelled" if error.code == CANCELLED else "failed")
        call.error = error
    except Exception as error:
        log_bug(call, error)
        grown.fail(as_api_error(error, call.request_id))
    finally:
        service.calls.discard(call)
        log_request(call, "/v1/responses", "BACKGROUND", call.error.status if call.error else 200)
    if service.responses.has(call.caller.tenant, grown.response["id"]):
        question.keep()


CANCELLED = "cancelled"


@router.get("/v1/responses/{response_id}", response_model=ResponseObject, **READS)
async def retrieve(request: Request, response_id: str) -> Response:
    """A stored response."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    if request.query_params.get("stream", "false").lower() != "false":
        raise unsupported("stream", "'stream' is not supported for stored responses.")
    return _json(service.responses.get(tenant, response_id).response)


@router.delete("/v1/responses/{response_id}", response_model=Deleted, **READS)
async def delete(request: Request, response_id: str) -> Response:
    """Forget a response; one that is being computed is ended."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    found = service.responses.remove(tenant, response_id)
    if found.work is not None:
        found.work.end(ApiError(400, "The response was deleted.", code=CANCELLED))
    return JsonResponse({"id": response_id, "object": "response", "deleted": True})


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_model=ResponseObject,
    openapi_extra={"requestBody": {"required": False, "content": {}}},
    **READS,
)
async def cancel(request: Request, response_id: str) -> Response:
    """End a response in the background; one that has ended stays as it is."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    found = service.responses.get(tenant, response_id)
    response = json.loads(found.response)
    if not response["background"]:
        text = "Only a response in the background can be cancelled."
        raise bad_value("response_id", text)
    if found.work is not None:
        found.work.end(ApiError(400, "The response was cancelled.", code=CANCELLED))
        response["status"] = CANCELLED
        found.status, found.response = CANCELLED, to_json(response)
    return _json(found.response)


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_model=ItemList,
    openapi_extra={"parameters": PAGING},
    **READS,
)
async def input_items(request: Request, response_id: str) -> Response:
    """The items that a response was asked with, the newest first unless `order` is asc."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    items = [_shown(item) for item in json.loads(service.responses.get(tenant, response_id).items)]
    return JsonResponse(page(request, items, default=20, most=100))


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is listed: a text as a list of one part."""
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": item["content"]}
        if kind == "output_text":
            part["annotations"] = []
        return {"status": "completed", **item, "content": [part]}
    return {"status": "completed", **item}


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
