"""The process: a socket, uvicorn, and what becomes of signals.

At the first SIGTERM or SIGINT new work is refused and what runs may finish, for `drain_timeout`
seconds; what still runs then is told so in an error event, and the process ends with 0. A second
signal ends it at once. A watchdog ends the process with 1 when the engine's thread has died or
hangs: whatever supervises it starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from qwenkit.llm import LLM
from qwenkit.options.serve import ServeOptions
from qwenkit.server import logs
from qwenkit.server.app import create_app
from qwenkit.server.errors import SERVER, ApiError, unavailable
from qwenkit.server.listen import BACKLOG
from qwenkit.server.protocol import bound
from qwenkit.server.service import Service

AT_ONCE = 32
"""Connections that are taken before others get their turn again."""
LAST_WORDS = 0.3
"""Seconds for the last events of requests that are ended."""
FAREWELL = 1.5
"""Seconds after which the process ends, whatever hangs."""

log = logging.getLogger("qwenkit.server")


def serve(
    llm: LLM, options: ServeOptions, listener: socket.socket, ready: Callable[[], None]
) -> int:
    """Serve until a signal; the exit code. `ready` is called once requests are taken."""
    logs.set_up(options)
    _raise_file_limit()
    app = create_app(llm, options)
    config = uvicorn.Config(
        app,
        http=bound(options),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=AT_ONCE,
        timeout_keep_alive=int(max(options.keep_alive, 1)),
        timeout_graceful_shutdown=1,
    )

    def begun() -> None:
        app.state.batches.resume()
        ready()

    server = Server(config, app.state.service, begun)
    llm.prepare_grammars()
    gc.collect()
    gc.freeze()  # the model's objects stay: looking through them again would stall every stream
    asyncio.run(server.serve(sockets=[listener]))
    server.part()
    llm.close()
    gc.unfreeze()
    return server.exit_code


def _raise_file_limit() -> None:
    """A connection is a file: take as many as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """uvicorn's server with draining and a watchdog."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._service, self._ready = service, ready
        self._deadline: float | None = None
        self._ended_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has set it to the number that it takes at once
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain; a second one: now."""
        service, now = self._service, time.monotonic()
        if service.draining:
            self._deadline = now
            return
        service.draining = True
        self._deadline = now + service.options.drain_timeout

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: True ends the server."""
        await super().on_tick(counter)
        service, now = self._service, time.monotonic()
        trouble = service.trouble
        if trouble and self._ended_at is None:
            log.error("%s; the server ends", trouble)
            self.exit_code, service.draining = 1, True
            text = "The server has failed and will be restarted."
            self._end(ApiError(500, text, kind=SERVER, code="engine_failed"))
        if self._ended_at is not None:
            return not service.calls or now > self._ended_at + LAST_WORDS
        if self._deadline is None:
            return False
        if not service.calls:
            return True
        if now >= self._deadline:
            self._end(unavailable("The server was asked to stop before this was done."))
        return False

    def _end(self, error: ApiError) -> None:
        self._ended_at = time.monotonic()
        self._service.end_all(error)
        self.part()

    def part(self) -> None:
        """From now on nothing may keep the process for long."""
        timer = threading.Timer(FAREWELL, os._exit, (self.exit_code,))
        timer.daemon = True
        timer.start()
