from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qwenkit.errors import DataError, OptionError, TokenizerError, TrainError
from qwenkit.options import PretrainOptions
from qwenkit.train import prepare, pretrain
from qwenkit.train.tokenise import TokenStore

Make = Callable[..., PretrainOptions]


def test_the_cache_is_used_until_something_changes(
    pretrain_options: Make, tmp_path: Path, chats: Path, byte_tokenizer: Path
) -> None:
    options = pretrain_options(data_cache=str(tmp_path / "cache"))

    def read(made: PretrainOptions = options) -> TokenStore:
        return prepare.prepare_data(made, byte_tokenizer, "pretrain")

    first = read()
    (file,) = (tmp_path / "cache").iterdir()
    stamp = file.stat().st_mtime_ns
    again = read()
    assert again.digest() == first.digest() and again.counts == first.counts
    assert file.stat().st_mtime_ns == stamp
    chats.write_text(chats.read_text().replace("What", "Whit", 1))
    assert read().digest() != first.digest()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    read(pretrain_options(data_cache=str(tmp_path / "cache"), max_seq_len=127))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_what_was_lost_is_said(
    pretrain_options: Make, chats: Path, byte_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qwenkit.train")
    with open(chats, "a") as file:
        file.write("{broken\n" + '{"text": "' + "x" * 200 + '"}\n')
    options = pretrain_options(
        on_bad_row="skip", overlong="drop", data=[f"{chats} tokens=1M"], max_seq_len=128
    )
    store = prepare.prepare_data(options, byte_tokenizer, "pretrain")
    assert store.counts["skipped"] == 1 and store.counts["dropped"] == 1 and len(store) == 40
    assert "1 rows dropped" in caplog.text and "1 rows skipped" in caplog.text
    assert "of the 1000000 tokens asked for" in caplog.text


def test_splitting_holds_back_and_tells_of_overlap(caplog: pytest.LogCaptureFixture) -> None:
    offsets = np.arange(0, 33, 2, dtype=np.int64)
    ids = np.repeat(np.arange(16, dtype=np.int32), 2)
    store = TokenStore(ids, np.ones(32, np.uint8), offsets)
    kept, held = prepare.split(store, 0.25, seed=0)
    assert held is not None and (len(kept), len(held)) == (12, 4)
    assert not set(kept.ids.tolist()) & set(held.ids.tolist()) and not caplog.text
    prepare.split(TokenStore(ids * 0, store.mask, offsets), 0.25, seed=0)
    assert "4 of the 4 held-back sequences are also in the training data" in caplog.text
    assert prepare.split(store, 0.0, 0) == (store, None)
    with pytest.raises(DataError, match="leaves nothing"):
        prepare.split(store.select(np.array([0])), 0.5, 0)


def test_a_device_that_is_not_there(pretrain_options: Make) -> None:
    if torch.cuda.is_available():
        assert prepare.setup_device(pretrain_options(device="cuda")).type == "cuda"
    else:
        with pytest.raises(OptionError, match="no GPU"):
            prepare.setup_device(pretrain_options(device="cuda"))
    assert prepare.setup_device(pretrain_options(device="cpu")) == torch.device("cpu")


def test_a_folder_without_tokenizer(pretrain_options: Make, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError):
        pretrain.run(pretrain_options(tokenizer=str(tmp_path)))


def test_a_disk_full_while_publishing_leaves_the_old_model(
    pretrain_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = pretrain_options(max_steps=1)
    path = pretrain.run(options)
    before = (path / "model.safetensors").read_bytes()

    def full(*ignored: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "save_model", full)
        with pytest.raises(TrainError, match="No space left"):
            pretrain.run(options)
    assert (path / "model.safetensors").read_bytes() == before
    pretrain.run(options)
    assert {p.name for p in path.parent.iterdir() if "model" in p.name} == {"model"}
