"""`qwenkit plan` and `qwenkit family`: what fits, before anything runs or is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.cli.memory import (
    BITS,
    Estimate,
    available_memory,
    estimate,
    gpus,
    parse_size,
    total_memory,
)
from qwenkit.cli.output import hint, print_json, table
from qwenkit.config import FAMILY, FamilyEntry, ModelConfig, find_family
from qwenkit.errors import ConfigError, ModelNotFoundError, OptionError, QwenkitError
from qwenkit.io.gguf_parts import is_gguf, read_gguf
from qwenkit.io.hub import resolve
from qwenkit.options import FamilyOptions, PlanOptions, suggest
from qwenkit.utils import human_bytes, human_count, read_json

FAMILY_CONTEXT = 4096
"""Tokens for which `family` asks whether a model fits."""


@dataclass(frozen=True)
class Place:
    """Memory that a model could be put into."""

    name: str
    free: int
    total: int

    def __str__(self) -> str:
        if self.total == self.free:
            return f"{self.name}: {human_bytes(self.free)}"
        return f"{self.name}: {human_bytes(self.free)} free of {human_bytes(self.total)}"


def places(memory: str | None) -> list[Place]:
    """Main memory and each GPU, or the one size that was given."""
    if memory is not None:
        return [Place("memory as given", parse_size(memory), parse_size(memory))]
    cards = [Place(name, free, total) for name, free, total in gpus()]
    return [Place("main memory", available_memory(), total_memory()), *cards]


def plan(options: PlanOptions) -> int:
    """The table of one model: dtype by what takes the memory, and the flag that makes it fit."""
    config = find_config(options.model)
    longest = config.context_length
    context = options.max_model_len or longest
    if context > longest:
        entry = find_family(options.model)
        most = max(longest, (entry.yarn_context or 0) if entry else 0)
        if context > most:
            raise OptionError(
                f"max_model_len is {context}, but {options.model} holds {most} tokens.",
                f"Use at most --max-model-len {most}.",
            )
    here = places(options.memory)
    rows = [estimate(config, dtype, context, options.concurrency) for dtype in BITS]
    if options.as_json:
        print_json(_as_json(options, config, context, here, rows))
        return 0
    many = f", {options.concurrency} sequences at once" if options.concurrency > 1 else ""
    size = human_count(config.num_parameters)
    print(f"{options.model}: {size} parameters, {context} tokens of context{many}")
    lines = [
        [row.dtype, *map(human_bytes, (row.weights, row.cache, row.working, row.total))]
        for row in rows
    ]
    for line, row in zip(lines, rows, strict=True):
        line += [verdict(row, place, context) for place in here]
    titles = [
        "main memory" if place is here[0] and not options.memory else place.name for place in here
    ]
    table(["dtype", "weights", "cache", "working", "total", *titles], lines, right=[1, 2, 3, 4])
    for place in here:
        print(place)
    hint(_next(options, rows, here, context))
    return 0


def find_config(model: str) -> ModelConfig:
    """A config by family name, folder, config.json, GGUF file or cached model; fetches nothing.

    Errors: ModelNotFoundError with the nearest name, ConfigError, FormatError.
    """
    entry = find_family(model)
    if entry is not None:
        return entry.config
    path = Path(model)
    if is_gguf(path) and path.is_file():
        return read_gguf(path).config()
    try:
        file = path if path.is_file() else resolve(model, offline=True) / "config.json"
    except QwenkitError as error:
        near = suggest(model.rpartition("/")[2], FAMILY)
        advice = f"Did you mean Qwen/{near}?" if near else "`qwenkit family` has the names."
        raise ModelNotFoundError(
            f"{model!r} is neither published nor on this machine.", advice
        ) from error
    values = read_json(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is not a JSON object.", "Give a model's config.json.")
    values.pop("quantization_config", None)  # the shapes are the same
    return ModelConfig.from_dict(values, source=str(file))


def verdict(row: Estimate, place: Place, context: int) -> str:
    """fits, the flag with which it would, or by how much the weights alone are too large."""
    if row.total <= place.free:
        return "fits"
    most = row.context_within(place.free)
    if most:
        return f"--max-model-len {min(most, context)}"
    return f"no, {human_bytes(row.total - row.cache - place.free)} short"


def _next(options: PlanOptions, rows: list[Estimate], here: list[Place], context: int) -> str:
    run = f"qwenkit run {options.model}"
    for row in rows:
        if row.dtype == "fp32":
            continue
        packed = "" if row.dtype == "bf16" or is_gguf(options.model) else f" --quantize {row.dtype}"
        answers = [verdict(row, place, context) for place in here]
        if "fits" in answers:
            return run + packed
        flag = next((answer for answer in answers if answer.startswith("--")), None)
        if flag:
            return f"{run}{packed} {flag}"
    return "qwenkit family --fits"


def _as_json(
    options: PlanOptions, config: ModelConfig, context: int, here: list[Place], rows: list[Estimate]
) -> dict[str, Any]:
    return {
        "model": options.model,
        "parameters": config.num_parameters,
        "max_model_len": context,
        "concurrency": options.concurrency,
        "memory": [{"name": p.name, "free_bytes": p.free, "total_bytes": p.total} for p in here],
        "dtypes": {
            row.dtype: {
                "weights_bytes": row.weights,
                "cache_bytes": row.cache,
                "working_bytes": row.working,
                "total_bytes": row.total,
                "runs_in_this_version": True,
                "fits": [row.total <= place.free for place in here],
                "max_model_len_that_fits": [min(row.context_within(p.free), context) for p in here],
            }
            for row in rows
        },
    }


_SERIES = {
    "base": ("base",),
    "instruct": ("instruct",),
    "coder": ("coder", "coder-instruct"),
    "math": ("math", "math-instruct"),
    "vl": ("vl-instruct",),
    "moe": ("moe",),
}


def family(options: FamilyOptions) -> int:
    """The table of published models, with what fits now."""
    here = max(places(options.memory), key=lambda place: place.free)
    found = []
    for entry in FAMILY.values():
        if options.kind != "all" and entry.kind not in _SERIES[options.kind]:
            continue
        best = best_fit(entry, here.free)
        if best is not None or not options.fits:
            found.append((entry, best))
    if options.as_json:
        print_json([_entry_json(entry, best) for entry, best in found])
        return 0
    rows = []
    for entry, best in found:
        sizes = [
            estimate(entry.config, dtype, FAMILY_CONTEXT).weights for dtype in ("bf16", "int4")
        ]
        rows.append(
            [
                entry.name,
                human_count(entry.num_parameters),
                _context(entry),
                entry.licence,
                *map(human_bytes, sizes),
                best or "no",
            ]
        )
    table(
        ["model", "params", "context", "licence", "bf16", "int4", "fits"], rows, right=[1, 2, 4, 5]
    )
    print(f"fits: weights and {FAMILY_CONTEXT} tokens of context in {here}")
    print("context after the slash: with YaRN; int8 and int4: --quantize, GPTQ and AWQ files")
    hint("qwenkit plan Qwen/NAME, then qwenkit pull Qwen/NAME")
    return 0


def best_fit(entry: FamilyEntry, memory: int) -> str | None:
    """The widest of bf16, int8, int4 in which a model with a context of 4096 tokens fits."""
    kinds = ("bf16", "int8", "int4")
    fit = (kind for kind in kinds if estimate(entry.config, kind, FAMILY_CONTEXT).total <= memory)
    return next(fit, None)


def _context(entry: FamilyEntry) -> str:
    plain = _kilo(entry.config.context_length)
    return f"{plain}/{_kilo(entry.yarn_context)}" if entry.yarn_context else plain


def _kilo(tokens: int) -> str:
    return f"{tokens // 1024}K"


def _entry_json(entry: FamilyEntry, best: str | None) -> dict[str, Any]:
    weights = {
        kind: estimate(entry.config, kind, FAMILY_CONTEXT).weights
        for kind in ("bf16", "int8", "int4")
    }
    return {
        "model": entry.repo,
        "kind": entry.kind,
        "parameters": entry.num_parameters,
        "context": entry.config.context_length,
        "context_with_yarn": entry.yarn_context,
        "licence": entry.licence,
        "released": entry.released,
        "weights_bytes": weights,
        "fits": best,
    }
