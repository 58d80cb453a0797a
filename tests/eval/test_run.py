from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import qwenkit
from qwenkit.errors import EngineError, OptionError
from qwenkit.eval.report import Report, Row, weight_digests, wilson
from qwenkit.eval.run import evaluate, held_out, run
from qwenkit.options import EvalOptions
from qwenkit.tasks.base import Example
from qwenkit.tasks.synth import TASKS


@dataclass
class Call:
    name: str
    arguments: str


@dataclass
class Result:
    text: str
    tool_calls: tuple[Call, ...] = ()
    finish_reason: str = "stop"
    error: str | None = None
    usage: Any = field(
        default_factory=lambda: SimpleNamespace(prompt_tokens=10, completion_tokens=3)
    )


class Oracle:
    """Knows the held-out answers, and answers every `wrong_every`-th question wrong."""

    name = "oracle"
    path: Path | None = None
    model = SimpleNamespace(device="cpu", dtype=torch.bfloat16)

    def __init__(
        self, skills: list[str], count: int, *, seed: int = 0, wrong_every: int = 0
    ) -> None:
        self.gold: dict[str, Example] = {}
        self.wrong_every, self.asked, self.calls = wrong_every, 0, []
        for skill in skills:
            for lang in ("en", "zh"):
                for example in held_out(TASKS[skill], lang, seed, count):
                    self.gold[example.question()] = example

    def answer(self, key: str) -> Result:
        self.asked += 1
        if self.wrong_every and self.asked % self.wrong_every == 0:
            return Result("?")
        example = self.gold[key]
        if example.messages is None:
            return Result(example.completion or "")
        message = example.messages[-1]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        # As the parser gives them: JSON text.
        parsed = tuple(Call(each["name"], json.dumps(each["arguments"])) for each in calls)
        return Result(message["content"], parsed)

    def chat_many(self, conversations: Any, tools: Any = None, **sampling: Any) -> list[Result]:
        self.calls.append((len(conversations), sampling))
        pairs = zip(conversations, tools, strict=True)
        return [self.answer(json.dumps(pair, ensure_ascii=False, sort_keys=True)) for pair in pairs]

    def generate(
        self, prompt: Any, *, allow_special: bool = False, **sampling: Any
    ) -> list[Result]:
        assert allow_special
        self.calls.append((len(prompt), sampling))
        return [self.answer(each) for each in prompt]


def test_gold_answers_of_every_skill_count_as_exact() -> None:
    skills = list(TASKS)
    oracle: Any = Oracle(skills, 8)
    report, answers = evaluate(oracle, count=8, batch=3)
    assert [(row.skill, row.lang) for row in report.rows] == [
        (skill, lang) for skill in skills for lang in ("en", "zh")
    ]
    assert all(row.exact == row.n == 8 for row in report.rows)
    assert len(answers) == 16 * len(skills) and all(entry["exact"] for entry in answers)
    assert [size for size, _ in oracle.calls[:3]] == [3, 3, 2]
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 384}
    assert all(sampling == greedy for _, sampling in oracle.calls)
    assert report.rows[0].prompt_tokens == 80 and report.rows[0].completion_tokens == 24


def test_wrong_answers_are_counted_and_logged() -> None:
    skills = ["tool_call", "json_object", "python_fill"]
    oracle: Any = Oracle(skills, 20, wrong_every=4)
    report, answers = evaluate(oracle, skills, ["zh"], count=20)
    assert [row.exact for row in report.rows] == [15, 15, 15]
    wrong = [entry for entry in answers if not entry["exact"]]
    assert len(wrong) == 15 and all(entry["answer"]["content"] == "?" for entry in wrong)
    assert {entry["lang"] for entry in answers} == {"zh"}
    first = answers[0]
    assert set(first["question"]) == {"messages", "tools"} and first["question"]["messages"]
    assert first["gold"]["role"] == "assistant" and first["finish_reason"] == "stop"
    assert set(answers[-1]["question"]) == {"prompt"} and answers[-1]["gold"]["content"]


def test_questions_hold_no_gold_answer() -> None:
    example = held_out(TASKS["tool_answer"], "en", 0, 1)[0]
    oracle: Any = Oracle(["tool_answer"], 1)
    seen: list[Any] = []
    oracle.chat_many = lambda conversations, tools, **_: [seen.append(conversations), Result("")][
        1:
    ]
    evaluate(oracle, ["tool_answer"], ["en"], count=1)
    assert example.messages is not None and seen == [[example.messages[:-1]]]


def test_a_cut_answer_is_wrong_even_if_it_reads_right() -> None:
    oracle: Any = Oracle(["identity"], 3)
    plain = oracle.answer

    def cut(key: str) -> Result:
        result: Result = plain(key)
        result.finish_reason = "length"
        return result

    oracle.answer = cut
    report, answers = evaluate(oracle, ["identity"], ["en"], count=3)
    assert report.rows[0].exact == 0 and answers[0]["finish_reason"] == "length"


def test_arguments_that_are_no_json_are_wrong_and_kept() -> None:
    oracle: Any = Oracle(["tool_call"], 2)
    oracle.answer = lambda key: Result("", (Call("get_weather", '{"city": '),))
    report, answers = evaluate(oracle, ["tool_call"], ["en"], count=2)
    assert report.rows[0].exact == 0
    assert answers[0]["answer"]["tool_calls"][0]["function"]["arguments"] == '{"city": '


def test_an_engine_failure_is_an_error_and_no_wrong_answer() -> None:
    oracle: Any = Oracle(["identity"], 2)
    oracle.answer = lambda key: Result("", finish_reason="error", error="NaN in the logits")
    with pytest.raises(EngineError, match="NaN in the logits"):
        evaluate(oracle, ["identity"], ["en"], count=2)


@pytest.mark.parametrize(("skills", "langs"), [(["tool_cal"], ["en"]), (["identity"], ["fr"])])
def test_unknown_skills_and_languages_are_refused(skills: list[str], langs: list[str]) -> None:
    oracle: Any = Oracle([], 0)
    with pytest.raises(OptionError, match=r"There is no (skill|language)"):
        evaluate(oracle, skills, langs)


def test_questions_are_different_held_out_and_named_by_the_seed() -> None:
    task = TASKS["python_fill"]
    questions = held_out(task, "en", 0, 60)
    assert len({example.question() for example in questions}) == 60
    assert all(example.is_held_out() for example in questions)
    assert questions == held_out(task, "en", 0, 60) != held_out(task, "en", 1, 60)


class TwoQuestions:
    name = "two"

    def sample(self, rng: Any, lang: str) -> Example:
        ten = (Example("two", lang, prompt=str(i), completion="") for i in range(10_000))
        return rng.choice(list(islice((each for each in ten if each.is_held_out()), 2)))

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        return True


def test_a_small_skill_gives_fewer_questions() -> None:
    assert len(held_out(TwoQuestions(), "en", 0, 5)) == 2


def test_wilson_interval() -> None:
    # Values of the published formula: 95 of 100, all of 50, none of 50.
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert wilson(50, 50) == pytest.approx((0.9287, 1.0), abs=1e-4)
    assert wilson(0, 50) == pytest.approx((0.0, 0.0713), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_report_is_json_and_a_table() -> None:
    rows = (Row("arithmetic", "en", 200, 198, 1.25), Row("arithmetic", "zh", 0, 0, 0.0))
    report = Report("m", rows, seed=3, count=200, max_tokens=9)
    value = json.loads(json.dumps(report.to_dict()))
    assert value["split"] == "held-out" and value["seed"] == 3
    assert value["results"][0] == {
        "skill": "arithmetic", "lang": "en", "n": 200, "exact": 198, "seconds": 1.25,
        "prompt_tokens": 0, "completion_tokens": 0, "share": 0.99, "low": 0.9643, "high": 0.9973,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "198/200 = 99.0 %" in text and "96.4–99.7" in text


def test_weights_are_named_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc" * 700_000)
    (tmp_path / "other.txt").write_text("x")
    assert weight_digests(tmp_path) == {
        "model.safetensors": hashlib.sha256(b"abc" * 700_000).hexdigest()
    }
    assert weight_digests(None) == {}


def options(tmp_path: Path, **values: Any) -> EvalOptions:
    given = {
        "model": "some/oracle",
        "tasks": ["identity"],
        "count": 4,
        "output": str(tmp_path / "out"),
    }
    return EvalOptions(**(given | values))


def test_run_writes_the_report_and_every_answer(tmp_path: Path, capsys: Any) -> None:
    oracle: Any = Oracle(["identity"], 4, wrong_every=8)
    oracle.path = tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"w")
    report = run(options(tmp_path), oracle)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == report.to_dict()
    assert written["model"] == "some/oracle" and written["dtype"] == "bfloat16"
    assert written["weights"] == {"model.safetensors": hashlib.sha256(b"w").hexdigest()}
    assert written["versions"]["qwenkit"] == qwenkit.__version__
    assert written["versions"]["torch"] == str(torch.__version__)
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["exact"] for line in lines] == [True] * 7 + [False]
    assert (tmp_path / "out" / "options.yaml").is_file()
    captured = capsys.readouterr()
    assert "identity" in captured.out and "3/4" in captured.out


def test_run_prints_json_alone(tmp_path: Path, capsys: Any) -> None:
    oracle: Any = Oracle(["identity"], 4)
    report = run(options(tmp_path, json=True), oracle)
    assert json.loads(capsys.readouterr().out) == report.to_dict()


def test_run_names_its_folder_after_the_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run(options(tmp_path, output=None, json=True), Oracle(["identity"], 4))  # type: ignore[arg-type]
    assert (tmp_path / "eval-oracle" / "report.json").is_file()
