"""The HTTP server: OpenAI's API over one `LLM`.

app.py        the application: `create_app(llm, options)`; document.py: its OpenAPI document
service.py    what every request shares: model, options, counters; `Call` is one request
gate.py       before and after every route: key, size, draining, request id, log line
body.py       bytes → checked JSON → a request model; errors.py: exceptions → OpenAI's envelope
openai/       one module for each family of endpoints
run.py        the process: signals, draining, watchdog; listen.py: its socket; protocol.py: its
              connections
"""
