"""What a weight format costs: the skills of a model in each one, and whether answers stay the same.

    python bench/skills_by_format.py [MODEL] [--count 50] [--seed 0] [--output bench/FORMATS.md]

Every format answers the same held-out questions greedily, through the engine and the kernels that
users have. int8, int4 and bfloat16 are what `--quantize` and `--dtype` load. The GGUF types are
packed here, matrix by matrix; the tied embedding and head are q8_0, as in the published files. The
types ending in K have blocks of 256: where a row is no multiple of that, it is filled up with zeros
for the rounding alone (which changes nothing in its own blocks), and the de-quantised matrix is
computed in float32. Then the same packed weights are compared with themselves de-quantised to
float32, in which only the rounding of activations is missing, and with activations of more bits.
Not covered: published models, speed (`speed.py`).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from qwenkit import ops
from qwenkit.eval.run import MAX_TOKENS, ask, entry, held_out
from qwenkit.llm import LLM
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear
from qwenkit.model.load import load_model
from qwenkit.model.packing import QUANTIZE
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare
from qwenkit.tasks.base import LANGUAGES, Example
from qwenkit.tasks.synth import TASKS
from qwenkit.utils import write_text

GGUF = ("q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k")
HEAD = "q8_0"
WIDTHS = (12, 16)


@dataclass(frozen=True)
class Found:
    """Exact answers and questions by skill, and the tokens of every answer in order."""

    exact: dict[str, tuple[int, int]]
    answers: list[tuple[int, ...]]

    def mean(self) -> float:
        return sum(right / asked for right, asked in self.exact.values()) / len(self.exact)


class RoundedLinear(nn.Module):
    """The de-quantised weight, with activations of some bits for each 32 inputs."""

    def __init__(self, linear: QuantLinear, bits: int) -> None:
        super().__init__()
        self.weight, self.bias, self.top = linear.dense(), linear.bias, 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        runs = F.pad(x, (0, -x.shape[1] % 32)).reshape(len(x), -1, 32)
        scale = (runs.abs().amax(2, keepdim=True) / self.top).clamp(min=1e-30)
        rounded = ((runs / scale).round() * scale).flatten(1)[:, : x.shape[1]]
        return F.linear(rounded, self.weight, self.bias)


def pack(model: Qwen, format: str | None, head: str | None) -> Qwen:
    """A copy with every matrix of the decoder in `format`, and the tied embedding in `head`."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if format and isinstance(module, Linear):
            block = ops.FORMATS[format].block
            if module.in_features % max(block, 1):
                module.weight.data = padded(module.weight.detach(), format)
            else:
                weight = ops.quantize(module.weight.detach(), format)
                put(model, name, QuantLinear(weight, module.bias))
    assert model.lm_head is None, "an untied head is not measured here"
    if head:
        group = QUANTIZE.get(head)
        weight = ops.quantize(model.model.embed_tokens.weight.detach(), head, group_size=group)
        put(model, "model.embed_tokens", QuantEmbedding(weight, model.dtype))
        put(model, "lm_head", QuantLinear(weight))
    return model


def padded(weight: Tensor, format: str) -> Tensor:
    """The matrix as the format would hold it if its rows were filled up to whole blocks."""
    wide = F.pad(weight, (0, -weight.shape[1] % ops.FORMATS[format].block))
    return ops.dequantize(ops.quantize(wide, format))[:, : weight.shape[1]].contiguous()


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def replaced(model: Qwen, make: Callable[[QuantLinear], nn.Module]) -> Qwen:
    """A copy with other modules in place of the packed ones; the embedding stays."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            put(model, name, make(module))
    return model


def dense(linear: QuantLinear) -> Linear:
    module = Linear(linear.in_features, linear.out_features)
    module.weight, module.bias = nn.Parameter(linear.dense()), linear.bias
    return module


class Bench:
    """Asks every model the same questions, all of them at once."""

    def __init__(self, base: LLM, count: int, seed: int) -> None:
        self.base = base
        self.questions: list[Example] = []
        for task in TASKS.values():
            for lang in LANGUAGES:
                self.questions += held_out(task, lang, seed, count)
        # A stable sort: chats first, so that the raw prompts are one list too.
        self.questions.sort(key=lambda question: question.messages is None)

    def ask(self, label: str, model: Qwen) -> Found:
        prepare(model)
        base, results = self.base, []
        with LLM(
            model,
            tokenizer=base.tokenizer,
            template=base.template,
            generation=base.generation,
            max_sequences=256,
        ) as llm:
            for raw in (False, True):
                chosen = [q for q in self.questions if (q.messages is None) == raw]
                results += ask(llm, chosen, MAX_TOKENS)
        exact: dict[str, tuple[int, int]] = {}
        answers = []
        for question, result in zip(self.questions, results, strict=True):
            right, asked = exact.get(question.skill, (0, 0))
            score = entry(TASKS[question.skill], question, result)["exact"]
            exact[question.skill] = (right + score, asked + 1)
            answers.append(result.choices[0].ids)
        every = Found(exact, answers)
        print(f"{label}: {100 * every.mean():.1f} %", file=sys.stderr, flush=True)
        return every


def equal(first: Found, second: Found) -> float:
    """The share of answers whose tokens are all the same."""
    pairs = list(zip(first.answers, second.answers, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def bits(model: Qwen) -> str:
    """Bits for each weight of the decoder's packed matrices."""
    packed = [m.packed for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    rows = [p for p in packed if p.shape[0] != model.config.vocab_size]
    if not rows:
        return "–"
    return f"{8 * sum(p.nbytes for p in rows) / sum(p.shape[0] * p.shape[1] for p in rows):.2f}"


def skills_table(bench: Bench, models: dict[str, Qwen]) -> tuple[list[str], dict[str, Found]]:
    sizes = {label: bits(model) for label, model in models.items()}  # before they are repacked
    found = {label: bench.ask(label, model) for label, model in models.items()}
    first = next(iter(found.values()))
    lines = [
        "| format | bits | " + " | ".join(first.exact) + " | mean | same as float32 |",
        "|---|---" + "|---" * (len(first.exact) + 2) + "|",
    ]
    for label, each in found.items():
        cells = [f"{100 * right / asked:.0f}" for right, asked in each.exact.values()]
        same = f"{100 * equal(first, each):.1f}"
        row = (label, sizes[label], *cells, f"{100 * each.mean():.1f}", same)
        lines.append("| " + " | ".join(row) + " |")
    return lines, found


def equality_table(bench: Bench, packed: dict[str, Qwen], found: dict[str, Found]) -> list[str]:
    lines = [
        "| weights | activations | mean | answers equal to float32 with the same weights |",
        "|---|---|---|---|",
    ]
    for label, model in packed.items():
        exact = bench.ask(f"{label}, float32", replaced(model, dense))
        rows = {"8 bits (the kernels)": found[label]}
        for width in WIDTHS if label == "int8" else ():
            rounded = replaced(model, partial(RoundedLinear, bits=width))
            rows[f"{width} bits (simulated)"] = bench.ask(f"{label}, {width} bits", rounded)
        lines.append(f"| {label} | float32 | {100 * exact.mean():.1f} | 100 |")
        for name, each in rows.items():
            same = f"{100 * equal(exact, each):.1f}"
            lines.append(f"| {label} | {name} | {100 * each.mean():.1f} | {same} |")
    return lines


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="tiny-instruct")
    parser.add_argument("--count", type=int, default=50, help="questions per skill and language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("bench/FORMATS.md"))
    options = parser.parse_args()
    base = LLM(options.model, dtype="float32")
    assert base.path is not None
    plain, bench = load_model(base.path, "float32"), Bench(base, options.count, options.seed)
    models = {
        "float32": load_model(base.path, "float32"),
        "bfloat16": load_model(base.path, "bfloat16"),
        "float32, head int8": pack(plain, None, "int8"),
        **{name: load_model(base.path, "float32", quantize=name) for name in QUANTIZE},
        **{name: pack(plain, name, HEAD) for name in GGUF},
    }
    packed = {name: copy.deepcopy(models[name]) for name in ("int8", "q8_0")}
    skills, found = skills_table(bench, models)
    equality = equality_table(bench, packed, found)
    asked = sum(asked for _, asked in found["float32"].exact.values())
    text = [
        "# Skills by weight format",
        "",
        f"`{' '.join(['python', 'bench/skills_by_format.py', *sys.argv[1:]])}`, commit {commit()},",
        f"{datetime.date.today()}, {platform.machine()}, ops: {ops.backend()}. {options.model}:",
        f"{len(TASKS)} skills, {2 * options.count} questions a cell (half English, half Chinese),",
        f"{asked} in all; exact answers in per cent. A cell of 100 questions near 90 % has a 95 %",
        "interval of ± 6; the questions are the same in all rows.",
        "",
        *skills,
        "",
        "bits: of the packed matrices of the decoder, scales included; a K type packs only the",
        "matrices whose rows are multiples of 256, the others are simulated. head int8: only the",
        "tied embedding and head are packed.",
        "",
        "## Greedy answers, kernels against de-quantised float32",
        "",
        *equality,
        "",
    ]
    write_text(options.output, "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
