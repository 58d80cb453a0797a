"""What all requests share (`Service`), and what one request knows of itself (`Call`)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from qwenkit.errors import OptionError
from qwenkit.llm import LLM, Adapter
from qwenkit.options.serve import ServeOptions
from qwenkit.server.auth import Caller, Keys
from qwenkit.server.data import DataFolder, Objects
from qwenkit.server.errors import ApiError, overloaded, unavailable
from qwenkit.server.metrics import Metrics
from qwenkit.server.rates import Rates
from qwenkit.server.stored import StoredResponses

R = TypeVar("R")
CALL = "qwenkit.call"
ANYBODY = Caller("")
CHARS_A_TOKEN = 4
USUAL_ANSWER = 256
"""Tokens that an answer without max_tokens is expected to have, for the rate limit."""


class Ended(Exception):
    """The client has gone; nobody is left to be answered."""


class Call:
    """One request from its first line to its last byte."""

    def __init__(self) -> None:
        self.request_id = f"req_{secrets.token_hex(16)}"
        self.caller = ANYBODY
        self.started = time.monotonic()
        self.body_bytes = 0
        self.spelling: dict[str, str] = {}
        """Parameter of `LLM` → the client's name for it, where they differ."""
        self.first_token_s: float | None = None
        self.prompt_tokens = self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.error: ApiError | None = None
        self._work: asyncio.Future[Any] | None = None

    def end(self, error: ApiError) -> None:
        """Stop what is being done for it, and answer with `error`."""
        if self.error is None:
            self.error = error
            if self._work is not None:
                self._work.cancel()

    async def attend(self, work: Coroutine[Any, Any, R], receive: Receive | None = None) -> R:
        """Await `work` for as long as the client is there; without `receive` there is none to go.

        Errors: Ended when the client has gone; the `ApiError` that `end` was called with; those of
        `work`.
        """
        self._work = task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if task.cancelled():
                raise self.error or Ended
            return task.result()
        finally:
            watch.cancel()
            if not task.done():
                task.cancel()


async def _gone(receive: Receive | None) -> None:
    if receive is None:
        await asyncio.Event().wait()
        return
    while (await receive())["type"] != "http.disconnect":
        pass


class Ticket:
    """The bytes of one body that is being received."""

    def __init__(self, service: Service) -> None:
        self._service, self.size = service, 0

    def add(self, count: int) -> None:
        """Count what has come. Errors: ApiError 413, 503."""
        options, service = self._service.options, self._service
        self.size += count
        service.received += count
        if self.size > options.max_body_bytes:
            raise too_large(options.max_body_bytes)
        if service.received > options.max_bodies_bytes:
            error = overloaded("Too many large requests are being received.", 2)
            error.close = True
            raise error


class Service:
    """The model with everything around it; one in a process."""

    def __init__(self, llm: LLM, options: ServeOptions) -> None:
        self.llm, self.options = llm, options
        self.names = list(options.served_model_name) or [options.model]
        self.keys = Keys.of(options)
        self.rates = Rates(options.requests_per_minute, options.tokens_per_minute)
        self.metrics = Metrics(llm, self.names[0], options.max_loras)
        self.created = int(time.time())
        self.calls: set[Call] = set()
        self.tasks: set[asyncio.Future[None]] = set()
        """What goes on when its request has ended."""
        data = DataFolder(options.data_dir)
        self.files = Objects(data, "files", "file")
        self.taken_bytes, self.taken_files = Counter[str](), Counter[str]()
        """Tenant → what is being written of files, and how many; under the lock of `files`."""
        self.batches = Objects(data, "batches", "batch")
        self.responses = StoredResponses(options.max_stored, options.max_stored_bytes)
        self.adapter_turn, self.upload_turn = asyncio.Lock(), asyncio.Lock()
        """One at a time: threads are for all, and room that was found free shall still be."""
        self.received = 0
        self.draining = False

    @contextlib.contextmanager
    def receiving(self, call: Call) -> Iterator[Ticket]:
        """Count a body while it is in memory as bytes."""
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            self.received -= ticket.size
            call.body_bytes = ticket.size

    @contextlib.contextmanager
    def metered(self, call: Call, max_tokens: int | None, n: int | None = 1) -> Iterator[None]:
        """Pay for the tokens of a call, and set it right behind. Errors: ApiError 429."""
        estimate = call.body_bytes // CHARS_A_TOKEN + (max_tokens or USUAL_ANSWER) * (n or 1)
        tenant, before = call.caller.tenant, call.prompt_tokens + call.completion_tokens
        paid, used = self.rates.take(tenant, "tokens", estimate), 0
        try:
            yield
        except asyncio.CancelledError:  # how far a whole answer had come is not known
            used = paid
            raise
        finally:
            used = call.prompt_tokens + call.completion_tokens - before or used
            self.rates.settle(tenant, "tokens", paid, used)

    @property
    def trouble(self) -> str | None:
        """Why this process should be ended; None while it is well."""
        driver = self.llm.driver
        if not driver.healthy:
            return "the engine's thread has died"
        if driver.busy_seconds > self.options.watchdog_timeout:
            return f"a step of the engine takes longer than {self.options.watchdog_timeout:g} s"
        return None

    def check_ready(self) -> None:
        """Errors: ApiError 503 while draining or in trouble."""
        if self.draining:
            raise unavailable("The server is shutting down; ask another one.")
        if self.trouble:
            raise unavailable("The server is not well and will be restarted.")

    def check_model(self, name: str) -> Adapter | None:
        """The adapter that a name stands for, None if it is the model's own. Who holds it can use
        it, whatever becomes of the name. Errors: ApiError 404 for what is not served.
        """
        found = self.llm.adapters.get(name)
        if found is None and name not in self.names:
            raise no_model(name)
        return found

    def add_adapter(self, name: str, folder: str | Path, *, replace: bool = False) -> None:
        """Serve an adapter under a name. Errors: those of `Adapters.load`."""
        if name in self.names:
            raise OptionError(f"{name!r} is the model's own name.", "Choose another one.")
        most = self.options.max_loras
        self.llm.adapters.load(name, folder, replace=replace, most=most)

    def check_size(self, texts: Iterable[str], param: str) -> None:
        """Refuse what cannot fit even if every token were the longest one, before it is tokenised.
        Composing characters (NFC) makes a text at most three times shorter.

        Errors: ApiError 400.
        """
        least = self.least_tokens(sum(map(len, texts)))
        if least > self.llm.context_length:
            text = f"The context holds {self.llm.context_length} tokens, but the prompt has at "
            text += f"least {least}. Shorten the prompt."
            raise ApiError(400, text, param=param, code="context_length_exceeded")

    def least_tokens(self, chars: int) -> int:
        """How many tokens a text of so many characters has at least."""
        return chars // (3 * self._longest_token)

    @cached_property
    def _longest_token(self) -> int:
        tokenizer = self.llm.tokenizer
        return max(len(tokenizer.id_to_token(i)) for i in range(tokenizer.vocab_size))

    def end_all(self, error: ApiError) -> None:
        """End every call that runs."""
        for call in list(self.calls):
            call.end(error)


def too_large(most: int) -> ApiError:
    """413."""
    return ApiError(
        413,
        f"The body is larger than {most} bytes.",
        code="request_too_large",
        close=True,
    )


def no_model(name: str, param: str = "model") -> ApiError:
    """404."""
    shown = name if len(name) <= 100 else name[:99] + "…"
    text = f"The model `{shown}` does not exist or you do not have access to it."
    return ApiError(404, text, param=param, code="model_not_found")


def service_of(request: Request) -> Service:
    """The service of the application that a request came to."""
    service: Service = request.app.state.service
    return service


def call_of(request: Request) -> Call:
    """The call that a request is."""
    call: Call = request.scope[CALL]
    return call
