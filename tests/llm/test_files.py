"""What stands beside the weights, when it is not what its name says (K166, K174)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenkit.errors import FormatError, QwenkitError
from qwenkit.llm.files import read_files

FILES = ("config.json", "generation_config.json", "vocab.json", "merges.txt")
FILES += ("tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def hollow(file: Path) -> None:
    """A file that claims to be endless."""
    with file.open("wb") as opened:
        opened.truncate(1 << 40)


FAULTS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "device": lambda file: file.symlink_to("/dev/zero"),
    "link to itself": lambda file: file.symlink_to(file.name),
    "link to nothing": lambda file: file.symlink_to("absent"),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\0" * 9),
    "hollow": hollow,
}


def everything(folder: Path) -> None:
    read_files(folder).load_template()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FILES)
def test_K174_what_is_no_file_is_named_without_hanging(copied: Path, name: str, fault: str) -> None:
    (copied / "generation_config.json").write_text("{}")
    everything(copied)
    (copied / name).unlink(missing_ok=True)
    FAULTS[fault](copied / name)
    with pytest.raises(QwenkitError, match=name) as caught:
        everything(copied)
    assert str(copied / name) in str(caught.value) and "\n" not in str(caught.value)


def test_K166_a_gguf_file_without_a_tokenizer(
    copied: Path, tmp_path: Path, write_gguf: Callable[..., None]
) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(copied, file, skip=["tokenizer.ggml.merges"])
    with pytest.raises(QwenkitError, match="merges is no list"):
        read_files(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"m\.gguf"):
        read_files(file)
