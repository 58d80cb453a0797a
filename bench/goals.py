"""Goals of the benchmarks: one line for each claim, and an exit code that says whether all hold.

met     streams: longest wait for a refusal 0.29 s (goal: at most 1 s)
"""

from __future__ import annotations

import sys

_missed: list[str] = []


def at_most(what: str, value: float, limit: float, unit: str = "") -> None:
    """Print a claim that holds when `value` is not above `limit`."""
    _tell(what, value, f"at most {_number(limit)}{unit}", value <= limit, unit)


def at_least(what: str, value: float, limit: float, unit: str = "") -> None:
    """Print a claim that holds when `value` is not below `limit`."""
    _tell(what, value, f"at least {_number(limit)}{unit}", value >= limit, unit)


def exactly(what: str, value: float, wanted: float, unit: str = "") -> None:
    """Print a claim that holds when `value` is `wanted`."""
    _tell(what, value, f"{_number(wanted)}{unit}", value == wanted, unit)


def finish() -> None:
    """End the process with 1 when a goal was missed."""
    if _missed:
        print(f"{len(_missed)} of the goals missed: {'; '.join(_missed)}", file=sys.stderr)
        sys.exit(1)


def _tell(what: str, value: float, goal: str, met: bool, unit: str) -> None:
    print(
        f"{'met   ' if met else 'MISSED'}  {what} {_number(value)}{unit} (goal: {goal})", flush=True
    )
    if not met:
        _missed.append(what)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
