"""Lists in pages: `limit`, `order` and `after` in the address."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from qwenkit.server.errors import bad_value

PAGING: list[dict[str, Any]] = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}},
    {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"]}},
    {"name": "after", "in": "query", "schema": {"type": "string"}},
]


def page(
    request: Request, items: list[dict[str, Any]], *, default: int, most: int
) -> dict[str, Any]:
    """A page of `items`, which are in the order in which they were made; each has an `id`.

    Errors: ApiError 400.
    """
    asked = request.query_params
    limit, order = asked.get("limit", str(default)), asked.get("order", "desc")
    if not limit.isascii() or not limit.isdecimal() or len(limit) > 9:
        raise bad_value("limit", "Invalid 'limit': it must be a number.", "invalid_type")
    if not 1 <= int(limit) <= most:
        code = f"integer_{'below_min' if int(limit) < 1 else 'above_max'}_value"
        raise bad_value("limit", f"Invalid 'limit': it must be from 1 to {most}.", code)
    if order not in ("asc", "desc"):
        raise bad_value("order", "Invalid value for 'order'. Supported values are: asc, desc.")
    if order == "desc":
        items = items[::-1]
    after = asked.get("after")
    if after:
        places = [number for number, item in enumerate(items) if item["id"] == after]
        if not places:
            raise bad_value("after", "Invalid 'after': no such object in this list.")
        items = items[places[0] + 1 :]
    found = items[: int(limit)]
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": len(items) > len(found),
    }
