"""The address to serve at, taken before the model is loaded: what is wrong with it is told at once.

Imports neither torch nor anything else that takes long.
"""

from __future__ import annotations

import ipaddress
import socket

from qwenkit.errors import OptionError, QwenkitError
from qwenkit.options.serve import ServeOptions
from qwenkit.server.auth import Keys

BACKLOG = 2048


def listen(options: ServeOptions) -> socket.socket:
    """Take the address, before the model is loaded.

    Errors: OptionError for an open address without a key, and for unusable keys; QwenkitError when
    the address cannot be had.
    """
    if not (Keys.of(options) or options.unprotected or _is_local(options.host)):
        raise OptionError(
            f"{options.host} can be reached by others, and there is no key.",
            "Give --api-key-file, or --unprotected if everybody may use the model.",
        )
    if "*" in options.allowed_origin and not (Keys.of(options) or options.unprotected):
        raise OptionError(
            "Every web page could use this server: all origins are allowed, and there is no key.",
            "Name the origins, or give --api-key-file, or --unprotected if you do not mind.",
        )
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise QwenkitError(
            f"{options.host}:{options.port} cannot be listened on: {reason}.",
            "Choose another --port or --host.",
        ) from error
    return listener


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
