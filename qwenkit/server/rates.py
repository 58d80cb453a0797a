"""Requests and tokens a minute, for each key: token buckets that refill evenly.

A request pays one request at once, and before it is begun the tokens that it will probably use: its
body's size over 4, and max_tokens. At its end that is set right. So many requests at the same time
cannot all be let in for the price of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from qwenkit.server.errors import ApiError

MINUTE = 60.0


class Bucket:
    """`limit` units a minute, at most `limit` saved up."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit, self.level, self._at = limit, float(limit), now

    def refill(self, now: float) -> None:
        gain = (now - self._at) * self.limit / MINUTE
        self.level, self._at = min(self.level + gain, float(self.limit)), now

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there."""
        return max(amount - self.level, 0) * MINUTE / self.limit


class Rates:
    """The buckets of all tenants; None is no limit."""

    def __init__(
        self,
        requests: int | None,
        tokens: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = {
            kind: limit for kind, limit in (("requests", requests), ("tokens", tokens)) if limit
        }
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def take(self, tenant: str, kind: str, amount: int) -> int:
        """Pay `amount`, or all that a minute brings if that is less; what was paid. Errors:
        ApiError 429 with the time after which there will be enough.
        """
        if kind not in self._limits:
            return 0
        bucket = self._bucket(tenant, kind)
        amount = min(amount, bucket.limit)
        wait = bucket.wait(amount)
        if wait > 0:
            text = f"Rate limit reached: {bucket.limit} {kind} a minute. Try again in {wait:.1f} s."
            raise ApiError(429, text, kind=kind, code="rate_limit_exceeded", retry_after=wait)
        bucket.level -= amount
        return amount

    def settle(self, tenant: str, kind: str, paid: int, used: int) -> None:
        """Give back what was paid too much; take what was paid too little, into debt if need be."""
        if kind in self._limits:
            bucket = self._bucket(tenant, kind)
            bucket.level = min(bucket.level + paid - used, float(bucket.limit))

    def headers(self, tenant: str) -> list[tuple[bytes, bytes]]:
        """OpenAI's `x-ratelimit-…` for a tenant; none where there is no limit."""
        found: list[tuple[bytes, bytes]] = []
        for kind, limit in self._limits.items():
            bucket = self._bucket(tenant, kind)
            values = {
                "limit": str(limit),
                "remaining": str(max(math.floor(bucket.level), 0)),
                "reset": f"{bucket.wait(limit):.3f}s",
            }
            for name, value in values.items():
                found.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
        return found

    def _bucket(self, tenant: str, kind: str) -> Bucket:
        now = self._clock()
        bucket = self._buckets.get((tenant, kind))
        if bucket is None:
            bucket = self._buckets[tenant, kind] = Bucket(self._limits[kind], now)
        bucket.refill(now)
        return bucket
