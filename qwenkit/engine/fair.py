"""The waiting line: one queue for each tenant, served by who has had least. Plain Python.

Each tenant's tokens are counted. The next request is the oldest one of the tenant with the lowest
count (the virtual token counter of Sheng 2024, arXiv 2401.00588); who comes back after a pause
starts level with the others, so nobody saves up. Within a tenant it is first come, first served.
A request may have a deadline, a moment of `time.monotonic`, until which it is willing to wait.
"""

from __future__ import annotations

import heapq
import itertools
import weakref
from collections import deque
from collections.abc import Iterator

from qwenkit.engine.request import Request

LOOK_AHEAD = 8
"""Requests of one tenant that are looked at when those before them cannot start yet."""


class FairQueue:
    """Requests that wait, of all tenants."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Request]] = {}
        self._served: dict[str, int] = {}
        self._active: dict[str, int] = {}  # requests that wait or run; without any it is forgotten
        self._deadlines: list[tuple[float, int, weakref.ref[Request]]] = []
        self._order = itertools.count()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, request: Request) -> None:
        """Queue a request; its tenant is known until `left` is called for it."""
        tenant = request.tenant
        if tenant not in self._active:
            self._active[tenant] = 0
            self._served[tenant] = min(self._served.values(), default=0)
        self._active[tenant] += 1
        self._queues.setdefault(tenant, deque()).append(request)
        self._size += 1
        if request.deadline is not None:
            if len(self._deadlines) > 2 * self._size + 64:  # most of them have started long ago
                self._deadlines = [each for each in self._deadlines if _waiting(each[2])]
                heapq.heapify(self._deadlines)
            # Nothing is kept alive here: an ended request lets go of its prompt and its adapter.
            entry = (request.deadline, next(self._order), weakref.ref(request))
            heapq.heappush(self._deadlines, entry)

    def remove(self, request: Request) -> None:
        """Take a request out of the line, to run it or to end it."""
        queue = self._queues[request.tenant]
        queue.remove(request)
        self._size -= 1
        if not queue:
            del self._queues[request.tenant]

    def candidates(self) -> Iterator[Request]:
        """The requests in the order in which they should start: for each tenant a few, the tenant
        who has had least first. To be asked again once something was taken.
        """
        for tenant in sorted(self._queues, key=self._served.__getitem__):
            yield from list(itertools.islice(self._queues[tenant], LOOK_AHEAD))

    def requests(self) -> list[Request]:
        """All of them. Any thread may ask."""
        return [request for queue in list(self._queues.values()) for request in list(queue)]

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Count tokens that were computed for a tenant."""
        self._served[tenant] += num_tokens

    def left(self, request: Request) -> None:
        """A request, waiting or running until now, has ended."""
        tenant = request.tenant
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant], self._served[tenant]

    def late(self, now: float) -> list[Request]:
        """Those still waiting whose deadline has passed."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = _waiting(heapq.heappop(self._deadlines)[2])
            if request is not None:
                late.append(request)
        return late


def _waiting(held: weakref.ref[Request]) -> Request | None:
    request = held()
    return request if request is not None and request.waits else None
