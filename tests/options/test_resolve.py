"""Sources of option values: precedence, origins, sections, and one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenkit.errors import OptionError
from qwenkit.options import (
    EvalOptions,
    PretrainOptions,
    RunOptions,
    SftOptions,
    resolve,
    write_resolved,
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(text: str, name: str = "options.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def fails(cls: Any, *args: Any, **kwargs: Any) -> str:
    kwargs.setdefault("env", {})
    with pytest.raises(OptionError) as caught:
        resolve(cls, *args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_precedence_and_origins(write: Any) -> None:
    file = write("temperature: 0.3\ntop_p: 0.3\ntop_k: 3\n")
    env = {"QWENKIT_TEMPERATURE": "0.2", "QWENKIT_TOP_P": "0.2", "QWENKIT_SEED": ""}
    checkpoint = {"temperature": 0.4, "top_k": 4, "repetition_penalty": 1.1, "do_sample": True}
    options = resolve(RunOptions, {"temperature": "0.1"}, file=file, env=env, checkpoint=checkpoint)
    values = (options.temperature, options.top_p, options.top_k, options.repetition_penalty)
    assert values == (0.1, 0.2, 3, 1.1)
    assert options.seed is None and options.min_p is None
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    assert [options.origin(name) for name in names] == [
        "--temperature",
        "QWENKIT_TOP_P",
        str(file),
        "the checkpoint",
        "default",
    ]


def test_the_checkpoint_fills_only_what_nobody_set() -> None:
    options = resolve(RunOptions, {"top_k": "7"}, env={})
    filled = options.with_defaults({"top_k": 20, "top_p": 0.8, "unknown": 1}, "the checkpoint")
    assert (filled.top_k, filled.top_p, filled.origin("top_p")) == (7, 0.8, "the checkpoint")
    assert options.top_p is None, "options are frozen; a copy is changed"


@pytest.mark.parametrize(
    ("flags", "env", "expected"),
    [
        (
            {"temperature": "-1"},
            {},
            "temperature is '-1' (from --temperature); it must be at least 0.",
        ),
        ({}, {"QWENKIT_SEED": "x"}, "seed is 'x' (from QWENKIT_SEED); it must be an integer."),
        ({"top_p": "0"}, {}, "top_p is '0' (from --top-p); it must be above 0."),
        (
            {"temperature": "nan"},
            {},
            "temperature is 'nan' (from --temperature); it must be a finite",
        ),
        ({"source": "hf"}, {}, "it must be one of auto, huggingface, modelscope."),
        ({"json": "perhaps"}, {}, "json is 'perhaps' (from --json); it must be true or false."),
        ({"temprature": "1"}, {}, "Did you mean temperature?"),
    ],
)
def test_a_wrong_value_names_its_origin(
    flags: dict[str, str], env: dict[str, str], expected: str
) -> None:
    assert expected in fails(RunOptions, flags, env=env)


def test_missing_options_say_how_to_give_them() -> None:
    text = fails(SftOptions, {"data": "a.jsonl", "model": "tiny"})
    assert "needs output_dir" in text and "--output-dir" in text and "YAML" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "temprature: 1",
            "unknown option 'temprature' for `qwenkit run`. Did you mean temperature?",
        ),
        ("top_k: [1]", "top_k is [1] (from"),
        ("top_k: 1\ntop_k: 2", ":2:1: not valid YAML: 'top_k' appears twice"),
        ("max_tokens: 1\nmax_new_tokens: 2", "max_tokens and max_new_tokens are the same option"),
        ("- a\n- b", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("seed: 1.5", "seed is 1.5"),
        ("? {a: 1}\n: 2", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_line(write: Any, text: str, expected: str) -> None:
    file = write(text)
    message = fails(RunOptions, file=file)
    assert expected in message and str(file) in message


def test_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in fails(RunOptions, file=tmp_path / "none.yaml")
    assert "cannot be read" in fails(RunOptions, file=tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("system: é".encode("latin-1"))
    assert "not UTF-8" in fails(RunOptions, file=latin)
    deep = tmp_path / "deep.yaml"
    deep.write_text("[" * 5000)
    assert "not valid YAML" in fails(RunOptions, file=deep)


def test_one_file_serves_several_verbs(write: Any) -> None:
    recipe = write(
        "pretrain:\n  output_dir: a\n  data: [stdlib]\n  model: tiny\n  learning_rate: 1e-3\n"
        "sft:\n  output_dir: b\n  data: x.jsonl\n  model_name_or_path: a\n  epochs: 2\n"
    )
    first = resolve(PretrainOptions, file=recipe, env={})
    second = resolve(SftOptions, file=recipe, env={})
    assert (first.output_dir, first.learning_rate, first.data) == ("a", 1e-3, ["stdlib"])
    assert (second.output_dir, second.model, second.num_train_epochs) == ("b", "a", 2)
    assert "has no section 'eval', only pretrain, sft" in fails(EvalOptions, file=recipe)


def test_keys_beside_sections_are_refused(write: Any) -> None:
    recipe = write("sft: {output_dir: b}\nseed: 3\n")
    assert "'seed' is not a section" in fails(SftOptions, file=recipe)
    recipe = write("sft: {output_dir: b}\npretrian: {seed: 3}\n")
    assert "Is it the section pretrain?" in fails(SftOptions, file=recipe)


def test_a_key_named_like_a_verb_stays_a_key(write: Any) -> None:
    file = write("tokenizer: t\noutput_dir: o\ndata: [stdlib]\nconfig: {hidden_size: 8}\n")
    options = resolve(PretrainOptions, file=file, env={})
    assert (options.tokenizer, options.config) == ("t", {"hidden_size": 8})


def test_text_becomes_lists_mappings_and_nothing() -> None:
    flags = {"output_dir": "o", "data": "[a, b]", "config": '{"hidden_size": 8}', "tokenizer": "t"}
    options = resolve(PretrainOptions, {**flags, "max_steps": "none"}, env={})
    assert (options.data, options.config, options.max_steps) == (
        ["a", "b"],
        {"hidden_size": 8},
        None,
    )
    assert resolve(RunOptions, {"stop": ["a", "b"]}, env={}).stop == ["a", "b"]
    assert resolve(RunOptions, {}, env={"QWENKIT_STOP": "END"}).stop == ["END"]
    assert resolve(EvalOptions, {"tasks": "a, b", "langs": ["zh"]}, env={}).tasks == ["a", "b"]
    assert "--config is not valid YAML" in fails(PretrainOptions, {**flags, "config": "{a"})


def test_names_of_other_trainers_are_understood() -> None:
    base = {"output_dir": "o", "data": "d", "model": "m"}
    options = resolve(
        SftOptions,
        {**base, "resume_from_checkpoint": "true", "save_total_limit": "3", "max_length": "64"},
        env={},
    )
    assert (options.resume, options.keep_checkpoints, options.max_seq_len) == ("must", 3, 64)
    assert resolve(SftOptions, {**base, "resume": "false"}, env={}).resume == "never"
    assert resolve(RunOptions, {"dtype": "bf16", "device": "auto"}, env={}).dtype == "bfloat16"


def test_options_that_contradict_each_other() -> None:
    base = {"output_dir": "o", "data": "d"}
    assert "from a model or from a config" in fails(PretrainOptions, base)
    both = {**base, "model": "m", "config": "{a: 1}"}
    assert "from a model or from a config" in fails(PretrainOptions, both)
    assert "needs a tokenizer" in fails(PretrainOptions, {**base, "config": "{a: 1}"})
    rates = {**base, "model": "m", "learning_rate": "1e-5", "min_learning_rate": "1e-4"}
    assert "min_learning_rate 0.0001 is above learning_rate 1e-05" in fails(SftOptions, rates)


def test_resolved_options_are_written_and_read_back(tmp_path: Path) -> None:
    flags = {
        "output_dir": str(tmp_path),
        "data": ["a.jsonl weight=2", "synth:arithmetic/中文"],
        "model": "m # no: comment",
        "learning_rate": "3e-5",
    }
    options = resolve(SftOptions, flags, env={"QWENKIT_SEED": "7"})
    path = write_resolved(options, tmp_path / "run")
    text = path.read_text(encoding="utf-8")
    assert "seed: 7  # QWENKIT_SEED" in text and "tensorboard: true  # default" in text
    assert yaml.safe_load(text) == options.to_dict()
    assert resolve(SftOptions, file=path, env={}).to_dict() == options.to_dict()
