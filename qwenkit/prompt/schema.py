"""Which JSON schemas an answer can be held to, and what is wrong with the others.

Contract: `check_schema` takes a schema as JSON values and returns the one that is compiled, with
only what restricts the answer in it; or raises a RequestError that names the keyword and where it
stands. The schemas are those of JSON Schema 2020-12 (json-schema.org/draft/2020-12), with `$ref`
inside the schema only. A keyword that the grammar cannot enforce is refused by name; with
`strict=False` it is left out instead, and the answer may break it. Limits: 10 levels, 5,000
properties (250 optional ones in an object), 1,000 values of `enum`. A schema that no finite answer
satisfies is refused.

Not covered: contradictions between patterns and lengths (the compiler finds those at a required
place), `uniqueItems`, `not`, `if`, and whatever else needs to look at the whole value at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

from qwenkit.errors import RequestError

MAX_DEPTH = 10
MAX_PROPERTIES = 5000
MAX_ENUM = 1000
MAX_OPTIONAL = 250
"""Properties of one object that may be left out: the work grows with the square of their number."""
MAX_LEAST, MAX_MOST = 100_000, 2**31 - 1
"""Of minItems and the like, and of maxItems and the like."""
MAX_MULTIPLE = 10_000
"""Digits of multipleOf: its automaton has about ten states for each unit."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time time date duration email hostname ipv4 ipv6 uuid uri").split()
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][48]|[2468]0|[13579][26])00)-02-29"
_DAY = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
_DATE = f"([0-9]{{4}}-{_DAY}02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP})"
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](\.[0-9]+)?([zZ]|[+-]{_HOUR})"
_LABEL = r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+"
OWN_FORMATS: dict[str, list[dict[str, Any]]] = {
    "date": [{"pattern": f"^{_DATE}$"}],
    "time": [{"pattern": f"^{_TIME}$"}],
    "date-time": [{"pattern": f"^{_DATE}[tT]{_TIME}$"}],
    "hostname": [
        {"pattern": rf"^{_LABEL}(\.{_LABEL})*$"},
        {"pattern": r"^[^.]{1,63}(\.[^.]{1,63})*$"},
        {"maxLength": 253},
    ],
    "email": [
        {"pattern": rf"^{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*$"},
        {"pattern": r"^[^@]{1,64}@[^.@]{1,63}(\.[^.@]{1,63})*$"},
        {"maxLength": 254},
    ],
}
"""What stands for a format where the compiler's own is wider than its document: 29 February in any
year, a second 60 in any minute (RFC 3339, 5.7; here in none), host names that are too long or have
two hyphens together (RFC 1123, 2.1; RFC 5891, 4.2.3.1), too long addresses (RFC 5321, 4.5.3.1).
"""
NOTES = frozenset(
    "$schema $id $comment title description default examples deprecated readOnly writeOnly "
    "contentMediaType contentEncoding".split()
)
"""Keywords that say nothing about which values are valid."""
LISTS, MAPS = ("anyOf", "oneOf", "allOf", "prefixItems"), ("properties", "patternProperties")
LEAST = ("minItems", "minLength", "minProperties")
MOST = ("maxItems", "maxLength", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
DEFINITIONS = ("$defs", "definitions")
_DIALECT = re.compile(r"https?://json-schema\.org/draft(/2020-12|/2019-09|-07|-06)/schema#?")

Schema = dict[str, Any] | bool


def check_schema(schema: Any, *, strict: bool = True) -> Schema:
    """The schema to compile. Errors: RequestError (its param is for the caller to fill in)."""
    checker = _Checker(strict)
    checked = checker.schema(schema, "#", 0)
    for ref, where in checker.refs:
        if ref not in checker.found:
            raise _bad(where, f"refers to {ref!r:.80}, where there is no schema")
    if not _finite(checked, checker.found):
        raise RequestError(
            "No finite answer satisfies the schema.",
            "Check for a contradiction, or a $ref that needs itself without an end.",
        )
    return checked


class _Checker:
    """One walk over a schema. `found`: the checked schemas by their place."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.found: dict[str, Schema] = {}
        self.refs: list[tuple[str, str]] = []
        self.num_properties = self.num_enum = 0

    def schema(self, node: Any, where: str, depth: int) -> Schema:
        if isinstance(node, bool):
            self.found[where] = node
            return node
        if not isinstance(node, Mapping):
            raise _bad(where, "must be a schema: an object, true or false")
        if where != "#" and "$id" in node:
            raise _bad(where, "has $id, which is taken only at the root", "Leave it out.")
        checked: dict[str, Any] = {}
        self.found[where] = checked
        for keyword, value in node.items():
            if keyword not in NOTES:
                self._keyword(checked, keyword, value, where, depth)
            elif keyword == "$schema" and not _DIALECT.fullmatch(str(value)):
                raise _bad(f"{where}/$schema", "is not JSON Schema 2020-12, 2019-09, 7 or 6")
        self._together(checked, where)
        if checked.get("format") in OWN_FORMATS:
            checked["allOf"] = [*checked.get("allOf", ()), *OWN_FORMATS[checked.pop("format")]]
        return checked

    def _keyword(
        self, checked: dict[str, Any], keyword: str, value: Any, where: str, depth: int
    ) -> None:
        at = f"{where}/{_escape(keyword)}"
        if keyword in DEFINITIONS or keyword in MAPS:
            checked[keyword] = self._map(keyword, value, at, depth)
        elif keyword in LISTS:
            checked[keyword] = self._list(keyword, value, at, depth)
        elif keyword in ("items", "additionalProperties"):
            if isinstance(value, list):
                raise _bad(at, "is a list", "Write prefixItems.")
            checked[keyword] = self.schema(value, at, _deeper(depth, at))
        elif keyword == "$ref":
            checked[keyword] = self._ref(value, at)
        elif keyword in _VALUES:
            _VALUES[keyword](value, at)
            if keyword == "enum":
                self.num_enum += len(value)
                _limit(self.num_enum, MAX_ENUM, at, "values of enum")
            if keyword != "format" or value in FORMATS:
                checked[keyword] = value
            elif self.strict:
                raise _bad(at, f"is {value!r:.40}", f"Use one of {', '.join(FORMATS)}.")
        elif self.strict:
            remedy = 'Write "type": [..., "null"].' if keyword == "nullable" else None
            raise _bad(
                where,
                f"has the keyword {keyword!r:.60}, which cannot be enforced",
                remedy or 'Leave it out, or say "strict": false to have it ignored.',
            )

    def _map(self, keyword: str, value: Any, at: str, depth: int) -> dict[str, Schema]:
        if not isinstance(value, Mapping):
            raise _bad(at, "must be an object of schemas")
        if keyword == "properties":
            self.num_properties += len(value)
            _limit(self.num_properties, MAX_PROPERTIES, at, "properties")
        below = 0 if keyword in DEFINITIONS else _deeper(depth, at) if value else depth
        return {
            key: self.schema(each, f"{at}/{_escape(key)}", below) for key, each in value.items()
        }

    def _list(self, keyword: str, value: Any, at: str, depth: int) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise _bad(at, "must be a list of schemas and not empty")
        below = _deeper(depth, at) if keyword == "prefixItems" else depth
        return [self.schema(each, f"{at}/{i}", below) for i, each in enumerate(value)]

    def _ref(self, value: Any, at: str) -> str:
        if not isinstance(value, str) or not re.fullmatch("#(/.*)?", value, re.DOTALL):
            raise _bad(
                at,
                f"is {value!r:.60}; only places inside the schema can be referred to",
                'Write "#/$defs/…". Nothing is fetched.',
            )
        self.refs.append((unquote(value), at))
        return quote(unquote(value), safe="#/~!$&'()*+,;=:@")  # the compiler takes ASCII only

    def _together(self, checked: dict[str, Any], where: str) -> None:
        """What a grammar cannot do, though each keyword alone is fine."""
        if checked.get("minProperties", 0) > len(set(checked.get("required", ()))) + 1:
            # Keys beyond `properties` may come twice, so only the required ones surely count.
            raise _bad(f"{where}/minProperties", "is over the number of required properties + 1")
        optional = set(checked.get("properties", ())) - set(checked.get("required", ()))
        _limit(len(optional), MAX_OPTIONAL, f"{where}/properties", "optional properties")


def _deeper(depth: int, at: str) -> int:
    if depth == MAX_DEPTH:
        raise RequestError(
            f"The schema is nested deeper than {MAX_DEPTH} levels, at {at:.200}.",
            "Make it flatter.",
        )
    return depth + 1


def _limit(count: int, most: int, at: str, what: str) -> None:
    if count > most:
        raise RequestError(f"The schema has over {most} {what}, at {at:.200}.", "Make it smaller.")


def _bad(where: str, what: str, remedy: str | None = None) -> RequestError:
    return RequestError(f"The schema is not usable: {where:.200} {what}.", remedy)


def _escape(key: str) -> str:
    """A key as a JSON pointer spells it (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


# The values of single keywords


def _type(value: Any, at: str) -> None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(n in TYPES for n in names):
        raise _bad(at, f"is {value!r:.60}", f"Use {', '.join(TYPES)}.")


def _enum(value: Any, at: str) -> None:
    if not isinstance(value, list) or not value:
        raise _bad(at, "must be a list of values and not empty")


def _required(value: Any, at: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _bad(at, "must be a list of names")
    _limit(len(value), MAX_PROPERTIES, at, "required properties")


def _least(value: Any, at: str) -> None:
    _count(value, MAX_LEAST, at)


def _most(value: Any, at: str) -> None:
    _count(value, MAX_MOST, at)


def _count(value: Any, most: int, at: str) -> None:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise _bad(at, f"is {value!r:.40}; it must be a whole number from 0")
    if value > most:
        raise _bad(at, f"is {value!r:.40}; at most {most} is taken")


def _bound(value: Any, at: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(at, f"is {value!r:.40}; it must be a number")


def _multiple(value: Any, at: str) -> None:
    _bound(value, at)
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    if sign or not any(digits) or int("".join(map(str, digits))) > MAX_MULTIPLE:
        raise _bad(at, f"is {value!r:.40}; it must be above 0 and have digits up to {MAX_MULTIPLE}")


def _string(value: Any, at: str) -> None:
    if not isinstance(value, str):
        raise _bad(at, "must be a text")


def _anything(value: Any, at: str) -> None:
    pass


_VALUES: dict[str, Callable[[Any, str], None]] = {
    "type": _type,
    "enum": _enum,
    "const": _anything,
    "required": _required,
    "pattern": _string,
    "format": _string,
    **dict.fromkeys(LEAST, _least),
    **dict.fromkeys(MOST, _most),
    **dict.fromkeys(BOUNDS, _bound),
    "multipleOf": _multiple,
}


# Whether an answer can come to an end


def _finite(root: Schema, found: Mapping[str, Schema]) -> bool:
    """Least fixed point: a schema is finite when all that it requires is."""
    known: set[str] = set()
    refs = {
        unquote(node["$ref"])
        for node in found.values()
        if isinstance(node, dict) and "$ref" in node
    }
    while True:
        fresh = {ref for ref in refs - known if _ends(found[ref], known)}
        if not fresh:
            return _ends(root, known)
        known |= fresh


def _ends(node: Schema, known: set[str]) -> bool:
    """Whether `node` has a finite value, if exactly the places in `known` have one."""
    if isinstance(node, bool):
        return node
    if "$ref" in node and unquote(node["$ref"]) not in known:
        return False
    if not all(_ends(each, known) for each in node.get("allOf", ())):
        return False
    for choice in ("anyOf", "oneOf"):
        if choice in node and not any(_ends(each, known) for each in node[choice]):
            return False
    if "enum" in node or "const" in node:
        return True
    kinds = node.get("type", TYPES)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any(kind not in ("array", "object") for kind in kinds) or any(
        _object_ends(node, known) if kind == "object" else _array_ends(node, known)
        for kind in kinds
    )


def _object_ends(node: dict[str, Any], known: set[str]) -> bool:
    properties, others = node.get("properties", {}), node.get("additionalProperties", True)
    other_ends = "patternProperties" in node or _ends(others, known)
    return all(
        _ends(properties[name], known) if name in properties else other_ends
        for name in node.get("required", ())
    )


def _array_ends(node: dict[str, Any], known: set[str]) -> bool:
    count, first = node.get("minItems", 0), node.get("prefixItems", [])
    needed = first[: int(count)]
    rest = count > len(first)
    return all(_ends(each, known) for each in needed) and (
        not rest or _ends(node.get("items", True), known)
    )
