"""`qwenkit plan` and `qwenkit family`: verdicts, flags, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenkit.config import FAMILY


def test_plan_gives_the_flag_that_makes_it_fit(cli: Callable[..., Any]) -> None:
    ran = cli("plan", "Qwen/Qwen2.5-7B-Instruct", "--memory", "16GiB")
    assert ran.code == 0 and "7.62B parameters, 32768 tokens" in ran.out
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line}
    assert "no, " in lines["fp32"] and lines["fp32"].endswith("short")
    assert lines["bf16"].rpartition("--max-model-len ")[2].isdecimal()
    assert lines["int8"].endswith("fits") and lines["int4"].endswith("fits")
    flag = lines["bf16"].split("--max-model-len ")[1]
    again = cli("plan", "Qwen2.5-7B-Instruct", "--memory", "16GiB", "--max-model-len", flag)
    assert any(line.startswith("bf16") and line.endswith("fits") for line in again.out.splitlines())


def test_plan_json(cli: Callable[..., Any]) -> None:
    words = ["plan", "qwen2.5-0.5b", "--context", "1024", "--concurrency", "4", "--memory", "64GB"]
    value = json.loads(cli(*words, "--json").out)
    assert value["max_model_len"] == 1024 and value["concurrency"] == 4
    row = value["dtypes"]["bf16"]
    assert row["cache_bytes"] == 4 * 1024 * 12_288 and row["fits"] == [True]
    assert row["weights_bytes"] == 2 * 494_032_768
    assert all(row["runs_in_this_version"] for row in value["dtypes"].values())


def test_plan_of_what_fits_only_when_packed(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("qwenkit.cli.plan.hint", said.append)
    for memory in ("40GiB", "20GiB", "12GiB", "10200MiB", "4GiB"):
        cli("plan", "Qwen2.5-14B-Instruct", "--memory", memory, "--max-model-len", "4096")
    run = "qwenkit run Qwen2.5-14B-Instruct"
    assert said[:3] == [run, f"{run} --quantize int8", f"{run} --quantize int4"]
    assert said[3].startswith(f"{run} --quantize int4 --max-model-len ")
    assert said[4] == "qwenkit family --fits"


def test_plan_of_a_folder_and_of_a_config(cli: Callable[..., Any], tmp_path: Path) -> None:
    values = FAMILY["Qwen2.5-3B"].config.to_dict()
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for model in (str(tmp_path), str(tmp_path / "config.json")):
        assert "3.09B parameters" in cli("plan", model).out
    (tmp_path / "config.json").write_text("{")
    ran = cli("plan", str(tmp_path))
    assert ran.code == 1 and "not valid JSON" in ran.err


def test_yarn_contexts_can_be_planned(cli: Callable[..., Any]) -> None:
    ran = cli("plan", "Qwen2.5-7B-Instruct", "--max-model-len", "131072", "--memory", "64GiB")
    assert ran.code == 0 and "131072 tokens of context" in ran.out


@pytest.mark.parametrize("kind", ["all", "base", "instruct", "coder", "math", "vl", "moe"])
def test_family_lists_every_published_model(cli: Callable[..., Any], kind: str) -> None:
    rows = json.loads(cli("family", "--kind", kind, "--json").out)
    names = {row["model"].removeprefix("Qwen/") for row in rows}
    if kind == "all":
        assert names == set(FAMILY)
    else:
        assert 1 <= len(names) < len(FAMILY)


def test_family_says_what_fits(cli: Callable[..., Any]) -> None:
    ran = cli("family", "--kind", "instruct", "--memory", "12GiB")
    fits = {
        line.split()[0]: line.split()[-1] for line in ran.out.splitlines() if "Instruct" in line
    }
    assert fits["Qwen2.5-3B-Instruct"] == "bf16" and fits["Qwen2.5-7B-Instruct"] == "int8"
    assert fits["Qwen2.5-14B-Instruct"] == "int4" and fits["Qwen2.5-72B-Instruct"] == "no"
    assert max(len(line) for line in ran.out.splitlines()) <= 90
    only = cli("family", "--kind", "instruct", "--memory", "12GiB", "--fits").out
    assert "Qwen2.5-14B-Instruct" in only and "72B" not in only
