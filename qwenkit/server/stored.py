"""Responses that are kept: in memory, as JSON bytes, within bounds for each tenant.

A tenant that keeps too many, or too many bytes, loses the ones that it has not used for longest,
never anybody else's. One that is being computed in the background is not lost: it counts with all
that its request holds, and is refused where there is no room for that. Whose object something is,
is part of its name here: of another tenant there is none. They are gone with the process.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from qwenkit.server.errors import ApiError, bad_value, overloaded


@dataclass
class Stored:
    """A response and the items it was asked with; both as JSON."""

    response: bytes
    items: bytes
    previous: str | None
    status: str
    work: Any = None
    """The call that computes it in the background, while it does."""
    held: int = 0
    """Bytes that this call holds besides."""

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items) + self.held


class StoredResponses:
    """tenant → id → `Stored`, the one that was used last at the end."""

    def __init__(self, max_number: int, max_bytes: int) -> None:
        self.max_number, self.max_bytes = max_number, max_bytes
        self._tenants: dict[str, OrderedDict[str, Stored]] = {}

    def put(
        self,
        tenant: str,
        response: dict[str, Any],
        items: list[dict[str, Any]],
        work: Any = None,
        held: int = 0,
    ) -> None:
        """Keep a response, or its newer state; what finds no room is not kept, and says so."""
        own = self._tenants.setdefault(tenant, OrderedDict())
        previous, status = response["previous_response_id"], response["status"]
        found = Stored(to_json(response), to_json(items), previous, status, work, held)
        own.pop(response["id"], None)
        if found.size > self.max_bytes:
            response["store"] = False
            return
        others = sum(each.size for each in own.values())
        for name in [name for name, each in own.items() if each.work is None]:
            if len(own) < self.max_number and others + found.size <= self.max_bytes:
                break
            others -= own.pop(name).size
        # What ran in the background was promised its place, whatever the others have grown to.
        if others + found.size <= self.max_bytes or response["background"]:
            own[response["id"]] = found
        else:
            response["store"] = False

    def get(self, tenant: str, response_id: str) -> Stored:
        """Errors: ApiError 404."""
        own = self._tenants.get(tenant, OrderedDict())
        if response_id not in own:
            shown = response_id if len(response_id) <= 100 else response_id[:99] + "…"
            text = f"Response with id '{shown}' not found."
            raise ApiError(404, text, param="response_id", code="response_not_found")
        own.move_to_end(response_id)
        return own[response_id]

    def has(self, tenant: str, response_id: str) -> bool:
        return response_id in self._tenants.get(tenant, ())

    def remove(self, tenant: str, response_id: str) -> Stored:
        """Errors: ApiError 404."""
        found = self.get(tenant, response_id)
        del self._tenants[tenant][response_id]
        return found

    def check_background(self, tenant: str, size: int, most: int) -> None:
        """Whether one more that has `size` bytes may be computed in the background, with `most` at
        once. Errors: ApiError 413 when it never may, 503 when not now.
        """
        if size > self.max_bytes:
            text = f"A response in the background can hold {self.max_bytes} bytes, with all that "
            text += "was asked and answered before it."
            raise ApiError(413, text, code="request_too_large")
        own = self._tenants.get(tenant, OrderedDict())
        running = [each.size for each in own.values() if each.work is not None]
        if len(running) >= most or sum(running) + size > self.max_bytes:
            raise overloaded("Too many responses are being computed in the background.", 5)

    def chain(self, tenant: str, last: str | None) -> list[Stored]:
        """A response and those before it, oldest first.

        Errors: ApiError 400 when one of them is not (or no longer) there, or not done.
        """
        found: list[Stored] = []
        while last is not None:
            try:
                stored = self.get(tenant, last)
            except ApiError:
                text = f"Previous response with id '{last[:100]}' not found."
                raise bad_value(
                    "previous_response_id", text, "previous_response_not_found"
                ) from None
            if stored.status not in ("completed", "incomplete"):
                text = f"The previous response is {stored.status}; nothing can follow it."
                raise bad_value("previous_response_id", text)
            found.append(stored)
            last = stored.previous
        return found[::-1]


def items_of(chain: list[Stored]) -> list[dict[str, Any]]:
    """What was asked and what was answered, one after the other."""
    found: list[dict[str, Any]] = []
    for stored in chain:
        found += [*json.loads(stored.items), *json.loads(stored.response)["output"]]
    return found
