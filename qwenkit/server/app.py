"""The application: every route, the handlers of errors, and the OpenAPI document of both."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from qwenkit import __version__
from qwenkit.errors import QwenkitError
from qwenkit.llm import LLM
from qwenkit.options.serve import ServeOptions
from qwenkit.server import adapters, health
from qwenkit.server.document import document
from qwenkit.server.errors import ApiError
from qwenkit.server.gate import Gate, tell
from qwenkit.server.openai import ROUTERS
from qwenkit.server.openai.batches import Batches
from qwenkit.server.service import Ended, Service

EXPOSED = ["x-request-id", "retry-after"] + [
    f"x-ratelimit-{name}-{kind}"
    for name in ("limit", "remaining", "reset")
    for kind in ("requests", "tokens")
]
"""Headers that scripts of allowed origins may read."""


class App(FastAPI):
    """FastAPI with the gate around it, outside of everything that could fail. Where web pages are
    allowed, what answers their preflights is around the gate: those bring no key.
    """

    def build_middleware_stack(self) -> ASGIApp:
        gate = Gate(super().build_middleware_stack(), self.state.service)
        origins = self.state.service.options.allowed_origin
        if not origins:
            return gate
        return CORSMiddleware(
            gate,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema


def create_app(llm: LLM, options: ServeOptions) -> App:
    """OpenAI's API over `llm`. Errors: OptionError for unusable keys."""
    app = App(
        title="qwenkit",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = Service(llm, options)
    app.state.batches = Batches(app.state.service)
    for router in (health.router, adapters.router, *ROUTERS):
        app.router.routes.extend(router.routes)  # one flat table, which tests walk
    kinds = (ApiError, QwenkitError, HTTPException, RequestValidationError, Ended, ClientDisconnect)
    for kind in (*kinds, OSError, Exception):
        app.add_exception_handler(kind, tell)
    return app
