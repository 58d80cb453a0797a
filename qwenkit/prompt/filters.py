"""The filters that a chat template may use: an allow-list, each with its growth under measure.

Contract: `FILTERS` maps names to functions with Jinja's own signatures and results (`tojson` as
`transformers` defines it). Whatever runs through a sequence lists it under the active budget
first; whatever makes text has it measured.

Not covered, on purpose: filters that chat templates do not use and that widen what must be guarded
(`attr`, `center`, `filesizeformat`, `format`, `pprint`, `random`, `striptags`, `truncate`,
`urlencode`, `urlize`, `wordwrap`, `xmlattr`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import filters as jinja_filters
from jinja2.exceptions import SecurityError

from qwenkit.prompt.budget import ACTIVE


def join_texts(separator: str, values: Iterable[Any] = ()) -> str:
    budget = ACTIVE.get()
    texts = [budget.text(value) for value in budget.take(values)]
    budget.charge(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def replace_text(text: str, old: str, new: str, count: int = -1) -> str:
    budget = ACTIVE.get()
    found = text.count(old)
    budget.charge(
        len(text) + (found if count is None or count < 0 else min(found, count)) * len(new)
    )
    return text.replace(old, new, -1 if count is None else count)


def _filter_replace(value: object, old: str, new: str, count: int | None = None) -> str:
    return replace_text(
        ACTIVE.get().text(value), str(old), str(new), -1 if count is None else count
    )


@jinja2.pass_environment
def _filter_join(
    environment: jinja2.Environment,
    value: Iterable[Any],
    d: str = "",
    attribute: str | int | None = None,
) -> str:
    values: Iterable[Any] = ACTIVE.get().watch(value)
    if attribute is not None:
        values = map(jinja_filters.make_attrgetter(environment, attribute), values)
    return join_texts(str(d), values)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as transformers defines it."""
    budget = ACTIVE.get()
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16):
        raise SecurityError("tojson: indent must be 0 to 16")
    if separators is not None and sum(map(len, separators)) > 16:
        raise SecurityError("tojson: separators are too long")
    budget.charge(budget.size(x))
    text = json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.charge(len(text))
    return text


def _indent(value: object, width: int = 4, first: bool = False, blank: bool = False) -> str:
    budget = ACTIVE.get()
    text = budget.text(value)
    if not isinstance(width, int) or not 0 <= width <= 1000:
        raise SecurityError("indent: width must be 0 to 1000")
    budget.charge(len(text) + width * (text.count("\n") + 1))
    return str(jinja_filters.do_indent(text, width, first, blank))


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not isinstance(precision, int) or abs(precision) > 20:
        raise SecurityError("round: precision must be -20 to 20")
    return float(jinja_filters.do_round(value, precision, method))


def _small(inner: Callable[..., Any]) -> Callable[..., Any]:
    """For `batch` and `slice`: a bounded number of rows or columns."""

    def guarded(value: Iterable[Any], number: int, fill_with: Any = None) -> Any:
        if not isinstance(number, int) or not 1 <= number <= 1000:
            raise SecurityError("batch and slice take 1 to 1000")
        return ACTIVE.get().watch(inner(ACTIVE.get().take(value), number, fill_with))

    return guarded


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment,
    values: Iterable[Any],
    attribute: str | int | None = None,
    start: float = 0,
) -> Any:
    values = ACTIVE.get().watch(values)
    if attribute is not None:
        values = map(jinja_filters.make_attrgetter(environment, attribute), values)
    total: Any = start
    for value in values:
        if not isinstance(value, (int, float)) or not isinstance(total, (int, float)):
            raise SecurityError("sum adds numbers only")
        total += value
    return total


def _listed(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a filter that runs through its input: list that first, watch a lazy result."""
    passing = getattr(inner, "jinja_pass_arg", None)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget, at = ACTIVE.get(), 1 if passing else 0
        value = args[at]
        if not isinstance(value, (str, Mapping)):
            value = budget.take(value)
        result = inner(*args[:at], value, *args[at + 1 :], **kwargs)
        if isinstance(result, str):
            budget.charge(len(result))
        return budget.watch(result) if isinstance(result, Iterator) else result

    if passing:
        guarded.jinja_pass_arg = passing  # type: ignore[attr-defined]
    return guarded


def _texted(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a filter from text to text."""

    def guarded(value: object, *args: Any, **kwargs: Any) -> Any:
        budget = ACTIVE.get()
        result = inner(budget.text(value) if not isinstance(value, str) else value, *args, **kwargs)
        if isinstance(result, str):
            budget.charge(len(result))
        return result

    return guarded


def _string(value: object) -> str:
    return ACTIVE.get().text(value)


_LISTED = (
    "dictsort first groupby items last list map max min reject rejectattr reverse select "
    "selectattr sort unique"
)
_TEXTED = "capitalize e escape lower safe title trim upper wordcount"
_AS_THEY_ARE = "abs count d default float int length"

FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _listed(jinja_filters.FILTERS[name]) for name in _LISTED.split()},
    **{name: _texted(jinja_filters.FILTERS[name]) for name in _TEXTED.split()},
    **{name: jinja_filters.FILTERS[name] for name in _AS_THEY_ARE.split()},
    "batch": _small(jinja_filters.do_batch),
    "indent": _indent,
    "join": _filter_join,
    "replace": _filter_replace,
    "round": _round,
    "slice": _small(jinja_filters.sync_do_slice),
    "string": _string,
    "sum": _sum,
    "tojson": _tojson,
}
