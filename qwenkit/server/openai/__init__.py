"""OpenAI's endpoints, one module for each family; each has a `router`."""

from __future__ import annotations

from qwenkit.server.openai import chat, completions, embeddings, models, responses, tokens

ROUTERS = (
    models.router,
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    tokens.router,
)
