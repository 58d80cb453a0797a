"""Responses that are kept: in memory, as JSON bytes, within bounds for each tenant.

A tenant that keeps too many, or too many bytes, loses the ones that it has not used for longest,
never anybody else's. Whose object something is, is part of its name here: of another tenant there
is none. They are gone with the process.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from qwenkit.server.errors import ApiError, bad_value
from qwenkit.utils import json_line


@dataclass
class Stored:
    """A response and the items it was asked with; both as JSON."""

    response: bytes
    items: bytes
    previous: str | None
    status: str
    work: Any = None
    """The call that computes it in the background, while it does."""

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items)


class StoredResponses:
    """tenant → id → `Stored`, the one that was used last at the end."""

    def __init__(self, max_number: int, max_bytes: int) -> None:
        self.max_number, self.max_bytes = max_number, max_bytes
        self._tenants: dict[str, OrderedDict[str, Stored]] = {}

    def put(
        self, tenant: str, response: dict[str, Any], items: list[dict[str, Any]], work: Any = None
    ) -> None:
        """Keep a response, or its newer state; what is too large alone is not kept, and says so."""
        own = self._tenants.setdefault(tenant, OrderedDict())
        previous, status = response["previous_response_id"], response["status"]
        found = Stored(json_line(response), json_line(items), previous, status, work)
        if found.size > self.max_bytes:
            response["store"] = False
            own.pop(response["id"], None)
            return
        own[response["id"]] = found
        own.move_to_end(response["id"])
        size = sum(each.size for each in own.values())
        for name in [name for name, each in own.items() if each.work is None]:
            if len(own) <= self.max_number and size <= self.max_bytes:
                break
            if name != response["id"]:
                size -= own.pop(name).size

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

    def running(self, tenant: str) -> int:
        """Responses of a tenant that are being computed in the background."""
        own = self._tenants.get(tenant, OrderedDict())
        return sum(each.work is not None for each in own.values())

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
