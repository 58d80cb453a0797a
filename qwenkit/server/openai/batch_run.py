"""Runs a batch: every line is a request like any other, with its own answer or its own error.

The lines go through the very functions that answer live requests, a few at a time, and wait where a
live client would be told to come again. What has been answered is written into a journal at once
(`batch_journal.py`), of which the output and the error file are made at the end. A server that
starts again with the same data folder goes on behind it. Where the tenant's files have no room for
an answer, the batch ends there as failed, and what was answered before is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from qwenkit.server.auth import Caller
from qwenkit.server.body import parse_json
from qwenkit.server.errors import ApiError, as_api_error, unsupported
from qwenkit.server.logs import log_bug
from qwenkit.server.openai import chat, completions, embeddings, responses
from qwenkit.server.openai.batch_journal import Journal
from qwenkit.server.openai.chat_fields import ChatRequest
from qwenkit.server.openai.responses_fields import ResponseRequest
from qwenkit.server.service import Call, Service
from qwenkit.server.validation import explain

Answerer = Callable[[Service, Call, Any], Awaitable[dict[str, Any]]]
ENDPOINTS: dict[str, tuple[type[BaseModel], Answerer]] = {
    "/v1/chat/completions": (ChatRequest, chat.answer),
    "/v1/completions": (completions.CompletionRequest, completions.answer),
    "/v1/embeddings": (embeddings.EmbeddingRequest, embeddings.answer),
    "/v1/responses": (ResponseRequest, responses.answer),
}
ENDED = ("failed", "completed", "expired", "cancelled")
Line = tuple[int, bytes]

log = logging.getLogger("qwenkit.server")


class BatchRun:
    """One batch, from validating to its end."""

    def __init__(
        self, service: Service, tenant: str, batch: dict[str, Any], places: asyncio.Semaphore
    ) -> None:
        self.batch = batch
        self._service, self._tenant, self._places = service, tenant, places
        self._calls: set[Call] = set()
        self._journal = Journal(service, tenant, batch)
        self._seen: set[str] = set()
        self._stopped = asyncio.Event()
        self._broken: ApiError | OSError | None = None
        self._wrong_line: int | None = None
        """Where the input stops being a batch."""

    async def run(self) -> None:
        """Until it has ended; cancelling this leaves it to be gone on with."""
        try:
            try:
                ending = await self._answer_all()
            except ApiError as error:
                self._tell(error)
                ending = "failed"
            if ending is not None:
                await self._end(ending)
        except OSError as error:
            log.error("batch %s failed: %s", self.batch["id"], error.strerror)
            self._fail(storage_error())
        except Exception as error:  # a bug
            log.error("batch %s failed", self.batch["id"], exc_info=error)
            self._fail(ApiError(500, "The server failed.", code="internal_error"))
        finally:
            self._journal.close()

    async def _answer_all(self) -> str | None:
        """How it ends; None when whoever starts again goes on with it. Errors: ApiError when it
        fails; OSError.
        """
        await asyncio.to_thread(self._journal.read)
        if self.batch["errors"] is not None:  # the server ended while this did
            return "failed"
        if self.batch["status"] == "validating":
            self.batch["request_counts"]["total"] = await asyncio.to_thread(self._count)
            if self.batch["status"] == "validating":  # not cancelled meanwhile
                self._journal.check_room()
                self._turn("in_progress")
        if self.batch["status"] == "in_progress":
            await self._all_lines()
            if self._service.draining:
                return None
        if self.batch["status"] == "cancelling":
            return "cancelled"
        if self.batch["status"] == "finalizing" and not self._journal.exists:
            raise storage_error()  # which could not be told when it happened
        if time.time() < self.batch["expires_at"]:
            return "completed"
        await asyncio.to_thread(self._expire)
        return "expired"

    async def _end(self, ending: str) -> None:
        if ending != "cancelled" and (ending != "failed" or self._journal.exists):
            self._turn("finalizing")
        await asyncio.to_thread(self._journal.finish)
        self._turn(ending)
        self._journal.remove()

    def cancel(self) -> None:
        """Begin no line any more, and end the ones that run."""
        self._turn("cancelling")
        self._stop()

    def _stop(self) -> None:
        self._stopped.set()
        for call in list(self._calls):
            call.end(ApiError(400, "The batch was cancelled.", code="batch_cancelled"))

    def _turn(self, status: str) -> None:
        self.batch["status"] = status
        self.batch[f"{status}_at"] = int(time.time())
        self._service.batches.put(self._tenant, self.batch)

    def _tell(self, error: ApiError) -> None:
        told = {"code": error.code, "message": error.message, "param": error.param}
        data = [{**told, "line": self._wrong_line}]
        self.batch["errors"] = {"object": "list", "data": data}

    def _fail(self, error: ApiError) -> None:
        """With nothing to show for it."""
        self._tell(error)
        try:
            self._journal.remove()  # first: it may be what fills the disk
            self._turn("failed")
        except OSError as broken:  # whoever starts again begins it again
            log.error("batch %s cannot be written: %s", self.batch["id"], broken.strerror)

    # Lines

    def _lines(self) -> Iterator[Line]:
        """(number from 1, bytes) of each line that is not blank; of a line that is too long only
        its beginning.
        """
        most = self._service.options.max_body_bytes
        path = self._service.files.path(self._tenant, self.batch["input_file_id"])
        if not path.exists():
            raise ApiError(404, "The input file is gone.", param="input_file_id", code="not_found")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(most + 2):
                number += 1
                whole = line
                while not whole.endswith(b"\n") and (whole := file.readline(1 << 20)):
                    pass
                if line.strip():
                    yield number, line.rstrip(b"\r\n")

    def _count(self) -> int:
        """Errors: ApiError for a file that is no batch at all."""
        most, count = self._service.options.max_batch_lines, 0
        for number, _ in self._lines():
            count += 1
            if count > most:
                self._wrong_line = number
                text = f"The file has more than {most} requests."
                raise ApiError(400, text, param="input_file_id", code="too_many_requests")
        if not count:
            raise ApiError(
                400, "The file has no request.", param="input_file_id", code="empty_file"
            )
        return count

    async def _all_lines(self) -> None:
        """Answer all lines that are not done, as many at a time as there are places.

        Errors: ApiError when an answer finds no room; OSError.
        """
        lines, done = self._lines(), frozenset(self._journal.done)
        running: set[asyncio.Task[None]] = set()
        try:
            while not self._over:
                line = await asyncio.to_thread(next, lines, None)
                if line is None:
                    break
                if line[0] in done:
                    self._note_id(line[1])
                    continue
                await self._places.acquire()
                if self._over:  # while it waited for others
                    self._places.release()
                    break
                task = asyncio.create_task(self._one_line(line))
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(lambda _: self._places.release())
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        cancelled = self.batch["status"] == "cancelling"
        if isinstance(self._broken, OSError) or (self._broken and not cancelled):
            raise self._broken

    async def _one_line(self, line: Line) -> None:
        number, raw = line
        call = Call()
        call.caller, call.body_bytes = Caller(self._tenant), len(raw)
        custom_id: str | None = None
        try:
            self._check_size(raw)
            value = await asyncio.to_thread(self._parse, raw)
            custom_id = _custom_id(value)
            self._name(value)
            body, answer = self._checked(value)
            found = await self._answered(call, body, answer)
            status, error = 200, None
        except ApiError as told:
            if told.code == "batch_cancelled" or self._service.draining:
                return
            status, found = told.status, told.body
            error = _line_error(number, told)
        response = {"status_code": status, "request_id": call.request_id, "body": found}
        try:
            self._journal.note(number, custom_id, response, error)
        except (ApiError, OSError) as broken:  # no line can be answered any more
            self._broken = self._broken or broken
            self._stop()

    def _expire(self) -> None:
        """Each line that was not answered has that as its error."""
        text = "The batch's completion window ended before this request was answered."
        expired = ApiError(400, text, code="batch_expired")
        for number, raw in self._lines():
            if number not in self._journal.done:
                value = None
                with contextlib.suppress(ApiError):
                    value = self._parse(raw)
                self._journal.note(number, _custom_id(value), None, _line_error(number, expired))

    def _check_size(self, raw: bytes) -> None:
        most = self._service.options.max_body_bytes
        if len(raw) > most:
            text = f"The line is larger than {most} bytes."
            raise ApiError(413, text, code="request_too_large")

    def _parse(self, raw: bytes) -> Any:
        return parse_json(raw, self._service.options, "The line")

    def _note_id(self, raw: bytes) -> None:
        with contextlib.suppress(ApiError):  # which is in the journal
            self._name(self._parse(raw))

    def _name(self, value: Any) -> None:
        """Note the line's custom_id, which no other has. Errors: ApiError."""
        if not isinstance(value, dict):
            raise ApiError(400, "A line must be a JSON object.")
        custom_id = _custom_id(value)
        if custom_id is None:
            raise _bad_part("custom_id", "it must be a string of 1 to 512 characters.")
        if custom_id in self._seen:
            raise _bad_part("custom_id", "an earlier line has the same.", "duplicate_custom_id")
        self._seen.add(custom_id)

    def _checked(self, value: dict[str, Any]) -> tuple[BaseModel, Answerer]:
        """Errors: ApiError."""
        body = value.get("body")
        unknown = sorted(value.keys() - {"custom_id", "method", "url", "body"})
        if unknown:
            text = f"Unknown parameter: '{unknown[0][:100]}'."
            raise ApiError(400, text, param=unknown[0][:100], code="unknown_parameter")
        if value.get("method") != "POST":
            raise _bad_part("method", "it must be POST.")
        if value.get("url") != self.batch["endpoint"]:
            raise _bad_part("url", "it must be the endpoint of the batch.", "mismatched_endpoint")
        if not isinstance(body, dict):
            raise _bad_part("body", "it must be an object.", "invalid_type")
        if body.get("stream"):
            raise unsupported("stream", "'stream' is not supported in a batch.")
        model, answer = ENDPOINTS[self.batch["endpoint"]]
        try:
            return model.model_validate(body), answer
        except ValidationError as error:
            raise explain(error, body) from None

    async def _answered(self, call: Call, body: BaseModel, answer: Answerer) -> dict[str, Any]:
        """The answer; while there is no room the line waits. Errors: ApiError."""
        service = self._service
        while True:
            if self._over:
                raise ApiError(400, "The batch was cancelled.", code="batch_cancelled")
            service.calls.add(call)  # a drain waits for it, and ends it like any other
            self._calls.add(call)
            try:
                service.check_ready()
                service.rates.take(self._tenant, "requests", 1)
                work = answer(service, call, body)
                return await call.attend(work)  # type: ignore[arg-type]
            except Exception as error:
                told = as_api_error(error, call.request_id, call.spelling)
                if told.status == 500 and not isinstance(error, ApiError):
                    log_bug(call, error)
                if told.status not in (429, 503) or told.retry_after is None:
                    raise told from error
                wait = told.retry_after or 1
            finally:
                service.calls.discard(call)
                self._calls.discard(call)
            try:
                await asyncio.wait_for(self._stopped.wait(), min(wait, 60))
            except asyncio.TimeoutError:
                pass

    @property
    def _over(self) -> bool:
        return (
            self._stopped.is_set()
            or self._service.draining
            or time.time() >= self.batch["expires_at"]
        )


def storage_error() -> ApiError:
    """What is told of an OSError."""
    return ApiError(500, "The server could not read or write a file.", code="storage")


def _bad_part(param: str, what: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"Invalid '{param}': {what}", param=param, code=code)


def _custom_id(value: Any) -> str | None:
    """A line's own name, if it has a usable one."""
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and 0 < len(found) <= 512 else None


def _line_error(number: int, told: ApiError) -> dict[str, Any]:
    """OpenAI's `code` and `message`, and where it is: the line of the input, counted from 1."""
    text = f"Line {number}: {told.message}"
    return {"code": told.code, "message": text, "param": told.param, "line": number}
