"""Who asks: `Authorization: Bearer KEY`, and nothing else, becomes a `Caller`.

Keys are kept as SHA-256 digests. A key that is presented is compared with every known one in time
that does not depend on where they differ. Without any key everybody is the same caller, and an
administrator (the server then listens on this machine only, or was told not to mind).

Whoever guesses is slowed down: an address that has sent too many wrong keys is told to wait, and
what it sends meanwhile is not looked at, right or wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.errors import OptionError
from qwenkit.options.serve import ServeOptions
from qwenkit.server.errors import ApiError
from qwenkit.server.rates import Bucket

Headers = Iterable[tuple[bytes, bytes]]
MAX_KEY_FILE = 1 << 20
LONGEST_KEY = 4096
MAX_ADDRESSES = 10_000


@dataclass(frozen=True)
class Caller:
    """Whose request it is. `tenant` stands for the key and is no secret: it may be logged. Prefixes
    are cached, turns taken and rates counted for each tenant.
    """

    tenant: str
    admin: bool = False


class WrongKeys:
    """How many wrong keys an address may yet send: a bucket for each, refilled evenly. Of IPv6 the
    first 64 bits count: whoever has one address has all behind them. Of too many addresses the one
    that was not heard of for longest is forgotten. Behind a proxy all clients have its address.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def check(self, address: str) -> None:
        """Errors: ApiError 429 while the address may not try."""
        bucket = self._buckets.get(_network(address))
        if bucket is None:
            return
        bucket.refill(self._clock())
        wait = bucket.wait(1)
        if wait > 0:
            text = "Too many wrong API keys came from this address; try again later."
            raise ApiError(429, text, kind="requests", code="rate_limit_exceeded", retry_after=wait)

    def count(self, address: str) -> None:
        """One more."""
        name, now = _network(address), self._clock()
        bucket = self._buckets.setdefault(name, Bucket(self._limit, now))
        self._buckets.move_to_end(name)
        bucket.refill(now)
        bucket.level -= 1
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket has none
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


class Keys:
    """The known keys: digest → caller."""

    def __init__(self, callers: dict[bytes, Caller], wrong: WrongKeys) -> None:
        self._callers, self._wrong = callers, wrong

    @classmethod
    def of(cls, options: ServeOptions) -> Keys:
        """Keys of the flags, the variables and the files. Errors: OptionError."""
        callers: dict[bytes, Caller] = {}
        keys = [(key.get_secret_value(), "") for key in options.api_key]
        if options.api_key_file:
            keys += _read(options.api_key_file)
        admins = _read(options.admin_key_file) if options.admin_key_file else []
        for number, (key, name) in enumerate([*keys, *admins]):
            if not key or len(key) > LONGEST_KEY or not key.isascii() or key != key.strip():
                raise OptionError(
                    "A key is empty, too long, or has characters that no header may have.",
                    "Use letters and digits, at most 4096.",
                )
            digest = _digest(key.encode())
            callers[digest] = Caller(name or digest.hex()[:12], admin=number >= len(keys))
        return cls(callers, WrongKeys(options.wrong_keys_per_minute))

    def __bool__(self) -> bool:
        return bool(self._callers)

    def caller(self, headers: Headers, address: str = "") -> Caller:
        """The caller of a request from `address`. Errors: ApiError 401, 429."""
        if not self._callers:
            return Caller("", admin=True)
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not given[0].startswith(b"Bearer ") or not given[0][7:].strip():
            raise _refused(
                "You did not give an API key. Send it as `Authorization: Bearer KEY`.", None
            )
        self._wrong.check(address)
        digest, found = _digest(given[0][7:]), None
        for known, caller in self._callers.items():  # all of them: no early end to be timed
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            self._wrong.count(address)
            raise _refused("The API key is not one of this server's.", "invalid_api_key")
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refused(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def _read(file: str) -> list[tuple[str, str]]:
    """(key, name) of each line that is not empty and no `#` comment."""
    path = Path(file)
    try:
        if path.stat().st_size > MAX_KEY_FILE:
            raise OptionError(f"{file} is larger than a list of keys can be.", "Give another file.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise OptionError(f"{file} cannot be read: {reason}.", "Check the path.") from error
    pairs = [line.split(None, 1) for line in lines if line.strip() and line.lstrip()[0] != "#"]
    if not pairs:
        raise OptionError(f"{file} has no key.", "Write one key a line.")
    return [(pair[0], pair[1].strip() if len(pair) > 1 else "") for pair in pairs]
