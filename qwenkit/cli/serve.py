"""`qwenkit serve`: take the address, load the model, answer until told to stop."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
from types import FrameType

from qwenkit.cli import load as loading
from qwenkit.cli.output import say
from qwenkit.options.serve import ServeOptions
from qwenkit.server.listen import listen


def serve(options: ServeOptions) -> int:
    """Serve `options.model`; the exit code."""
    listener = listen(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    waiting = options.max_waiting
    llm = loading.load(
        options,
        max_sequences=options.max_sequences,
        max_batch_tokens=options.max_batch_tokens,
        kv_bytes=None if options.kv_mib is None else options.kv_mib << 20,
        max_waiting=4 * options.max_sequences if waiting is None else waiting,
        max_waiting_per_tenant=options.max_waiting_per_key,
    )
    from qwenkit.server import run  # after the model, which is what takes torch's two seconds

    return run.serve(llm, options, listener, lambda: announce(options, listener))


def _leave(number: int, frame: FrameType | None) -> None:
    """Asked to stop while the model is being loaded."""
    sys.exit(0)


def announce(options: ServeOptions, listener: socket.socket) -> None:
    """Where the server is, a command that works, and the adapters."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    base = f"http://{shown}:{port}/v1"
    name = (options.served_model_name or [options.model])[0]
    key = options.api_key or options.api_key_file or options.admin_key_file
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    secret = '-H "Authorization: Bearer $KEY" ' if key else ""
    print(f"qwenkit serves {name} at {base}", flush=True)
    print(
        f"curl {base}/chat/completions {secret}-H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)}",
        flush=True,
    )
    for adapter, folder in options.adapters.items():
        print(f"adapter {adapter}, from {folder}", flush=True)
    if options.unprotected and not key:
        say("warning: everybody who can reach this address may use the model")
