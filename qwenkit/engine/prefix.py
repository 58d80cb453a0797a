"""Names for the content of a cache block, so that equal beginnings are computed once. Plain Python.

A block's keys and values depend on every token up to its end, on the images among them, on the
adapter, and on whether the positions are scaled (YaRN). Its key is the SHA-256 over the key of the
block before it and its own tokens; the first one starts from the rest. The tenant is mixed in as
well: whoever could find other people's beginnings in the cache could learn from the answer's speed
what they have asked.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from qwenkit.engine.request import Request


def extend_keys(request: Request, size: int, count: int) -> Sequence[bytes]:
    """The first `count` keys of a request's blocks of `size` tokens, which must be full; made when
    they are first asked for.
    """
    keys = request.block_keys
    while len(keys) < count:
        start = len(keys) * size
        parent = keys[-1] if keys else _root(request)
        hasher = hashlib.sha256(parent)
        hasher.update(array("q", request.token_ids[start : start + size]).tobytes())
        for position, digest in request.media:
            if start <= position < start + size:
                hasher.update(_framed(position.to_bytes(8, "little"), digest))
        keys.append(hasher.digest())
    return keys[:count]


def _root(request: Request) -> bytes:
    adapter = "" if request.adapter is None else str(request.adapter.id)
    parts = (_bytes(request.tenant), _bytes(adapter), bytes([request.scaled]))
    return hashlib.sha256(_framed(*parts)).digest()


def _framed(*parts: bytes) -> bytes:
    """Lengths before contents, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
