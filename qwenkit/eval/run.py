"""Measure a model on the held-out questions of the skills: `qwenkit eval MODEL`.

Every question is asked once, greedily (temperature 0, no penalties), in batches through the same
front door that users have; the task that made the question scores the answer, with no partial
credit. An answer longer than `max_tokens` is wrong. Two files are written: `report.json` and
`answers.jsonl`, which has every question with its gold answer, the answer, and whether it is exact.

    qwenkit eval tiny-instruct --tasks tool_call --count 500 --output runs/eval

Not covered: perplexity, published benchmarks, sampling several answers.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import qwenkit
from qwenkit.errors import EngineError, OptionError
from qwenkit.eval.report import Report, Row, weight_digests
from qwenkit.llm import LLM, Sampling
from qwenkit.options import EvalOptions, write_resolved
from qwenkit.tasks.base import LANGUAGES, Example, Task, examples
from qwenkit.tasks.synth import TASKS
from qwenkit.utils import write_json, write_text

BATCH = 32
MAX_TOKENS = 384
MAX_SEQUENCES = 256
"""Most questions in one step of the engine; the rest of a batch waits."""
MAX_DRAWS = 200
"""Draws for each question wanted, until a small skill is taken to have no more different ones."""

Answers = list[dict[str, Any]]
OnBatch = Callable[[int], None]


def evaluate(
    llm: LLM,
    skills: Sequence[str] = (),
    langs: Sequence[str] = LANGUAGES,
    *,
    count: int = 100,
    seed: int = 0,
    batch: int = BATCH,
    max_tokens: int = MAX_TOKENS,
    on_batch: OnBatch | None = None,
) -> tuple[Report, Answers]:
    """Ask up to `count` different held-out questions per skill and language.

    Args:
        skills: names out of `TASKS`, all if empty. langs: "en", "zh".
        batch: questions given to the model at once. on_batch: told how many were just answered.
    Returns: the report, and one entry per question (skill, lang, exact, question, gold, answer,
        finish_reason).
    Errors: OptionError for an unknown skill or language; EngineError when the engine gave up on a
        question, since a number without it would not be the model's.
    """
    tasks = [_task(skill) for skill in (skills or TASKS)]
    for lang in langs:
        if lang not in LANGUAGES:
            raise OptionError(f"There is no language {lang!r}.", f"Use {', '.join(LANGUAGES)}.")
    rows: list[Row] = []
    answers: Answers = []
    for task in tasks:
        for lang in langs:
            questions = held_out(task, lang, seed, count)
            start, entries = time.monotonic(), []
            prompt_tokens = completion_tokens = 0
            for chunk in _chunks(questions, batch):
                results = ask(llm, chunk, max_tokens)
                prompt_tokens += sum(result.usage.prompt_tokens for result in results)
                completion_tokens += sum(result.usage.completion_tokens for result in results)
                entries += [entry(task, *pair) for pair in zip(chunk, results, strict=True)]
                if on_batch is not None:
                    on_batch(len(chunk))
            seconds, exact = time.monotonic() - start, sum(each["exact"] for each in entries)
            tokens = (prompt_tokens, completion_tokens)
            rows.append(Row(task.name, lang, len(entries), exact, seconds, *tokens))
            answers += entries
    return _report(llm, rows, count, seed, max_tokens), answers


def held_out(task: Task, lang: str, seed: int, count: int) -> list[Example]:
    """`count` held-out examples with different questions; fewer if the skill has not so many."""
    found: dict[str, Example] = {}
    for example in islice(examples(task, lang, seed, held_out=True), MAX_DRAWS * count):
        found.setdefault(example.question(), example)
        if len(found) == count:
            break
    return list(found.values())


def run(options: EvalOptions, llm: LLM | None = None) -> Report:
    """`qwenkit eval`: measure, write the files, print the table (or the JSON).

    `llm` is the model if the caller has loaded it already.
    """
    model = llm if llm is not None else _load(options)
    skills = options.tasks or list(TASKS)
    with _progress() as progress:
        bar = progress.add_task("asking", total=len(skills) * len(options.langs) * options.count)
        report, answers = evaluate(
            model,
            skills,
            options.langs,
            count=options.count,
            seed=options.seed,
            batch=options.batch,
            max_tokens=options.max_tokens,
            on_batch=lambda done: progress.advance(bar, done),
        )
        progress.update(bar, total=len(answers))
    report = dataclasses.replace(report, model=options.model)
    folder = Path(options.output or f"eval-{Path(options.model).name}")
    write(report, answers, folder)
    write_resolved(options, folder)
    if options.as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        Console().print(report.table())
        Console(stderr=True).print(f"report and answers: {folder}", highlight=False)
    return report


def write(report: Report, answers: Answers, folder: Path) -> None:
    """`report.json` and `answers.jsonl` in `folder`, each written atomically."""
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in answers)
    write_text(folder / "answers.jsonl", lines)
    write_json(folder / "report.json", report.to_dict())


def _task(skill: str) -> Task:
    if skill not in TASKS:
        raise OptionError(f"There is no skill {skill!r}.", f"Use {', '.join(TASKS)}.")
    return TASKS[skill]


def _chunks(questions: list[Example], size: int) -> Iterator[list[Example]]:
    """All questions of one task are chats or all are raw; each chunk goes to the model at once."""
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def ask(llm: LLM, chunk: list[Example], max_tokens: int) -> list[Any]:
    """Greedy answers in order, to questions that are all chats or all raw. A question holds nothing
    of the gold answer.
    """
    greedy = Sampling(temperature=0.0, repetition_penalty=1.0, max_tokens=max_tokens)
    if chunk[0].messages is None:
        prompts = [each.prompt or "" for each in chunk]
        results = llm.generate(prompts, allow_special=True, **greedy)
    else:
        conversations = [each.messages[:-1] for each in chunk if each.messages is not None]
        results = llm.chat_many(conversations, [each.tools for each in chunk], **greedy)
    for result in results:
        if result.finish_reason in ("error", "abort"):
            raise EngineError(
                f"The engine gave up on a question: {result.error or result.finish_reason}.",
                "See `qwenkit doctor`, then measure again.",
            )
    return list(results)


def entry(task: Task, example: Example, result: Any) -> dict[str, Any]:
    """The line of one question in answers.jsonl."""
    answer: dict[str, Any] = {"role": "assistant", "content": result.text}
    calls = getattr(result, "tool_calls", ())
    if calls:
        answer["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": _parsed(call)}}
            for call in calls
        ]
    if example.messages is not None:
        question: dict[str, Any] = {"messages": example.messages[:-1], "tools": example.tools}
        gold: Any = example.messages[-1]
    else:
        question, gold = {"prompt": example.prompt}, {"content": example.completion}
    cut = result.finish_reason == "length"
    return {
        "skill": example.skill,
        "lang": example.lang,
        "exact": not cut and bool(task.score(example, answer)),
        "question": question,
        "gold": gold,
        "answer": answer,
        "finish_reason": result.finish_reason,
    }


def _parsed(call: Any) -> Any:
    """A call's arguments as a value; text that is no JSON stays text, which no gold answer is."""
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments


def _report(llm: LLM, rows: list[Row], count: int, seed: int, max_tokens: int) -> Report:
    return Report(
        model=llm.name,
        rows=tuple(rows),
        seed=seed,
        count=count,
        max_tokens=max_tokens,
        weights=weight_digests(llm.path),
        versions={
            "qwenkit": qwenkit.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        device=str(llm.model.device),
        dtype=str(llm.model.dtype).removeprefix("torch."),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _load(options: EvalOptions) -> LLM:
    return LLM(
        options.model,
        dtype=options.dtype,
        quantize=options.quantize,
        device=options.device,
        source=options.source,
        offline=options.offline,
        max_sequences=min(options.batch, MAX_SEQUENCES),
    )


def _progress() -> Progress:
    """Progress on stderr, so that stdout has the result alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=sys.stderr)
    return Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
