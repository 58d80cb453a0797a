"""`qwenkit show`, `list`, `pull`: what is known of a model, without loading it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenkit.cli.show import licence
from qwenkit.io.hub import ASSETS
from qwenkit.io.names import CachedModel


def test_a_folder(cli: Callable[..., Any], checkpoint: Path) -> None:
    facts = json.loads(cli("show", str(checkpoint), "--json").out)
    assert facts["parameters"] > 0 and facts["context"] == 512
    assert facts["licence"] == "apache-2.0" and facts["chat_template"] == "yes"
    assert facts["tokenizer"] == "278 tokens, 22 of them special"
    assert facts["weights"].endswith("F32 tensors in 1 file") and facts["quantisation"] is None
    assert facts["end_tokens"] == [258] and facts["sampling"] == "greedy"
    assert set(facts["files"]) == {path.name for path in checkpoint.iterdir()}
    text = cli("show", str(checkpoint)).out
    assert "tied embeddings    yes" in text and max(map(len, text.splitlines())) <= 80


def test_a_damaged_folder_shows_what_can_be_read(
    cli: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    (folder / "tokenizer.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    (folder / "README.md").write_text("---\n: [\n---\n")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    ran = cli("show", str(folder), "--json")
    facts = json.loads(ran.out)
    assert facts["tokenizer"].startswith("unreadable: ")
    assert facts["weights"].startswith("unreadable: ")
    assert facts["quantisation"] == "awq, 4 bits, groups of 64"
    assert facts["licence"] is None


def test_a_published_model_that_is_not_here(cli: Callable[..., Any]) -> None:
    facts = json.loads(cli("show", "Qwen/Qwen2.5-72B-Instruct", "--json").out)
    assert facts["path"] == "not on this machine" and facts["licence"] == "Qwen"
    assert facts["context_with_yarn"] == 131072
    moe = cli("show", "Qwen2-57B-A14B").out
    assert "experts per token  8" in moe and "57.41B" in moe


def test_licence_of_a_file(tmp_path: Path) -> None:
    assert licence(tmp_path) is None
    (tmp_path / "LICENSE").write_text("\n\n   Apache License\n  Version 2.0\n")
    assert licence(tmp_path) == "Apache License"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    assert licence(tmp_path) == "qwen-research"


def test_list(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    models = [
        CachedModel("Qwen/Qwen2.5-0.5B", Path("/x"), "modelscope", 1 << 30, "abcdef0123456789")
    ]
    monkeypatch.setattr("qwenkit.cli.models.list_cached", lambda: models)
    assert "Qwen/Qwen2.5-0.5B  1.0 GiB  modelscope  abcdef012345" in cli("list").out
    (row,) = json.loads(cli("ls", "--json").out)
    assert row["model"] == "Qwen/Qwen2.5-0.5B" and row["path"] == "/x"
    monkeypatch.setattr("qwenkit.cli.models.list_cached", list)
    ran = cli("list")
    assert (ran.out, ran.err) == ("", "no model on this machine\n")


def test_pull(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    def arrives(ref: str, *, source: str, progress: Any, refresh: bool) -> Path:
        assert (ref, source, refresh) == ("a/b@v1", "modelscope", True)
        for done in (0, 5, 10):
            progress("model.safetensors", done, 10)
        return checkpoint

    monkeypatch.setattr("qwenkit.cli.models.resolve", arrives)
    ran = cli("pull", "a/b@v1", "--source", "modelscope")
    assert ran.out == f"{checkpoint}\n"
    assert ran.err.count("fetching model.safetensors (10 bytes)") == 1 and "complete" in ran.err
    value = json.loads(cli("pull", "a/b@v1", "--source", "modelscope", "--json").out)
    assert value["path"] == str(checkpoint) and value["size_bytes"] > 0


def test_a_gguf_file(
    cli: Callable[..., Any], tmp_path: Path, write_gguf: Callable[..., None]
) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(ASSETS / "tiny-instruct", file, "Q8_0")
    facts = json.loads(cli("show", str(file), "--json").out)
    assert facts["layers"] == 6 and facts["tied_embeddings"] and facts["chat_template"] == "yes"
    assert facts["weights"].startswith("43 Q8_0, 31 F32 tensors in 1 file")
    assert facts["size_bytes"] == file.stat().st_size
    assert "small.gguf" in cli("show", str(file)).out
    assert "parameters" in cli("plan", str(file)).out
    file.write_bytes(file.read_bytes()[:1000])
    ran = cli("show", str(file))
    assert ran.code == 1 and "small.gguf: " in ran.err
    ran = cli("run", str(tmp_path / "absent.gguf"), "-p", "hi")
    assert ran.code == 1 and "no file" in ran.err
