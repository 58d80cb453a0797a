"""What an evaluation found: one row per skill and language, and what it was measured on.

`Report.to_dict` is the JSON that `publish` writes model cards from. Shares come with their 95 %
Wilson interval (E. B. Wilson, 1927), which stays honest for few questions and near 0 and 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from qwenkit.utils import sha256_file

Z95 = 1.959963984540054


def wilson(exact: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `exact` out of `n` were seen; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = exact / n, Z95 * Z95
    centre = p + z2 / (2 * n)
    spread = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    return (0.0 if exact == 0 else low), (1.0 if exact == n else high)


@dataclass(frozen=True)
class Row:
    """One skill in one language: `exact` of `n` questions answered exactly right, in `seconds`."""

    skill: str
    lang: str
    n: int
    exact: int
    seconds: float
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def share(self) -> float:
        return self.exact / self.n if self.n else 0.0

    def to_dict(self) -> dict[str, Any]:
        low, high = wilson(self.exact, self.n)
        derived = {"share": round(self.share, 4), "low": round(low, 4), "high": round(high, 4)}
        return {**asdict(self), "seconds": round(self.seconds, 2), **derived}


@dataclass(frozen=True)
class Report:
    """All rows, and everything needed to measure them again."""

    model: str
    rows: tuple[Row, ...]
    seed: int
    count: int
    max_tokens: int
    weights: dict[str, str] = field(default_factory=dict)
    """Weight file → SHA-256; empty for a model that was never a file."""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = ""
    created: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. `results` are the rows."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        fixed = {"format": "qwenkit-eval-1", "split": "held-out", "temperature": 0.0}
        return {**fixed, **head, "results": [row.to_dict() for row in self.rows]}

    def table(self) -> Table:
        """The rows for a terminal: one line per skill, one column per language."""
        langs = list(dict.fromkeys(row.lang for row in self.rows))
        table = Table(title=f"{self.model}: exact answers to held-out questions")
        table.add_column("skill")
        for lang in langs:
            table.add_column(lang, justify="right")
            table.add_column("95 % interval", justify="right", style="dim")
        cells = {(row.skill, row.lang): row for row in self.rows}
        for skill in dict.fromkeys(row.skill for row in self.rows):
            line = [skill]
            for lang in langs:
                row = cells.get((skill, lang))
                line += ["", ""] if row is None else list(_cells(row))
            table.add_row(*line)
        return table


def _cells(row: Row) -> tuple[str, str]:
    low, high = wilson(row.exact, row.n)
    return f"{row.exact}/{row.n} = {100 * row.share:.1f} %", f"{100 * low:.1f}–{100 * high:.1f}"


def weight_digests(model_dir: Path | None) -> dict[str, str]:
    """SHA-256 of every safetensors file of a model folder, or of a GGUF file, by name."""
    if model_dir is None:
        return {}
    if model_dir.is_file():
        return {model_dir.name: sha256_file(model_dir)}
    return {path.name: sha256_file(path) for path in sorted(model_dir.glob("*.safetensors"))}
