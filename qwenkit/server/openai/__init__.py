"""OpenAI's endpoints, one module for each family; each has a `router`."""

from __future__ import annotations

from qwenkit.server.openai import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    models,
    responses,
    tokens,
)

ROUTERS = (
    models.router,
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    files.router,
    batches.router,
    tokens.router,
)
