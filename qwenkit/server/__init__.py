"""The HTTP server: OpenAI's API over one `LLM`.

app.py        the application: routes and the document of them
service.py    what every request shares: model, options, counters; `Call` is one request
gate.py       before and after every route: key, size, draining, request id, log line
body.py       bytes → checked JSON → a request model; errors.py: exceptions → OpenAI's envelope
openai/       one module for each family of endpoints
run.py        the process: socket, signals, draining, watchdog; protocol.py: its connections
"""

from __future__ import annotations

from qwenkit.server.app import create_app

__all__ = ["create_app"]
