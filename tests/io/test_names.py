"""Which files of a repository are fetched, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenkit.errors import HubError
from qwenkit.io.names import RemoteFile, is_complete, listed_file, wanted_files
from qwenkit.io.safetensors import save_sharded


def files(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, f"http://hub/{name}", 1) for name in names]


def test_wanted_files_small_ones_first() -> None:
    wanted = wanted_files(
        files(
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin",
            "chat_template.jinja",
            "merges.txt",
            "vocab.json",
            "config.json",
            "LICENSE",
            "README.md",
            "modeling_custom.py",
            "image.png",
            ".hidden.json",
            "onnx/config.json",
        ),
        "a/b",
    )
    assert [f.path for f in wanted] == [
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "vocab.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_K160_custom_code_is_never_wanted() -> None:
    wanted = wanted_files(files("model.safetensors", "modeling_x.py", "run.sh", "x.so"), "a/b")
    assert [f.path for f in wanted] == ["model.safetensors"]


def test_no_weights() -> None:
    with pytest.raises(HubError, match="a/b has no weights"):
        wanted_files(files("config.json"), "a/b")
    with pytest.raises(HubError, match="only pickled weights"):
        wanted_files(files("config.json", "pytorch_model.bin"), "a/b")


@pytest.mark.parametrize("size", [-1, 1.5, True, None, "1"])
def test_impossible_sizes(size: object) -> None:
    with pytest.raises(HubError, match="impossible file"):
        listed_file("config.json", size, "http://hub")


def test_is_complete(tmp_path: Path) -> None:
    assert not is_complete(tmp_path) and not is_complete(tmp_path / "absent")
    save_sharded({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path, 40)
    assert not is_complete(tmp_path)
    for name in ("config.json", "vocab.json", "merges.txt"):
        assert not is_complete(tmp_path)
        (tmp_path / name).write_text("{}")
    assert is_complete(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert not is_complete(tmp_path)
