"""Which files are the checkpoint, and which names are never trusted (K153 to K156, K175)."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.errors import FormatError
from qwenkit.io.index import check_names, find_weights, name_fault
from qwenkit.io.safetensors import Checkpoint, save_file

SHARD = "model-00001-of-00001.safetensors"


def index(directory: Path, value: Any) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    (directory / "model.safetensors.index.json").write_bytes(raw)


NAMES = {
    "K153-parent": "../model.safetensors",
    "K153-deep-parent": "x/../../model.safetensors",
    "K153-absolute": "/etc/model.safetensors",
    "K153-subdirectory": "sub/model.safetensors",
    "K153-backslash": "..\\model.safetensors",
    "K153-drive": "C:model.safetensors",
    "K153-url": "https://example.org/model.safetensors",
    "K153-nul": "model\0.safetensors",
    "K153-newline": "model\n.safetensors",
    "K153-right-to-left": "model\u202e.safetensors",
    "K153-empty": "",
    "K153-dot": ".",
    "K153-dots": "..",
    "K153-too-long": "x" * 300 + ".safetensors",
    "K153-option": "-rf.safetensors",
    "K153-home": "~root.safetensors",
    "K153-trailing-space": "model.safetensors ",
    "K153-other-kind": "pytorch_model.bin",
    "K153-fifo-name": "model.fifo",
}


@pytest.mark.parametrize("case", NAMES)
def test_K153_hostile_shard_names(tmp_path: Path, case: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    index(inner, {"weight_map": {"a": NAMES[case]}})
    with pytest.raises(FormatError, match="names the file"):
        Checkpoint.open(inner)


INDEXES: dict[str, Any] = {
    "not-json": b"{",
    "list": [],
    "no-map": {},
    "map-is-list": {"weight_map": []},
    "map-is-empty": {"weight_map": {}},
    "shard-is-number": {"weight_map": {"a": 1}},
    "shard-is-list": {"weight_map": {"a": ["x.safetensors"]}},
    "duplicate-key": b'{"weight_map": {"a": "%b", "a": "%b"}}' % (SHARD.encode(), SHARD.encode()),
    "duplicate-map": b'{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}',
    "nested": b'{"weight_map":' * 50_000,
    "invalid-utf8": b'{"weight_map": {"\xff": "x"}}',
}


@pytest.mark.parametrize("case", INDEXES)
def test_K154_malformed_indexes(tmp_path: Path, case: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / SHARD)
    index(tmp_path, INDEXES[case])
    with pytest.raises(FormatError, match=r"index\.json"):
        find_weights(tmp_path)


def test_K154_an_absent_shard_is_named(tmp_path: Path) -> None:
    names = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    save_file({"t0": torch.ones(1)}, tmp_path / names[0])
    index(tmp_path, {"weight_map": {f"t{i}": name for i, name in enumerate(names)}})
    with pytest.raises(FormatError, match="lacks 2 of 3 shards") as caught:
        find_weights(tmp_path)
    assert names[1] in str(caught.value) and names[2] in str(caught.value)


def test_K174_an_index_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    with pytest.raises(FormatError, match="is a pipe"):
        find_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", SHARD, "model.safetensors.index.json"])
def test_K153_a_link_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    save_file({"a": torch.ones(1)}, outer / SHARD)
    index(outer, {"weight_map": {"a": SHARD}})
    if name == "model.safetensors":
        (inner / name).symlink_to(outer / SHARD)
    else:
        save_file({"a": torch.ones(1)}, inner / SHARD)
        index(inner, {"weight_map": {"a": SHARD}})
        (inner / name).unlink()
        (inner / name).symlink_to(Path("..") / "outer" / name)
    with pytest.raises(FormatError, match="is a link that leaves"):
        Checkpoint.open(inner)


def test_K153_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="model.safetensors cannot be opened"):
        Checkpoint.open(tmp_path)


def test_K153_links_within_the_directory_or_the_cache_work(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    save_file({"a": torch.ones(1)}, local / "weights")
    (local / "model.safetensors").symlink_to("weights")
    assert Checkpoint.open(local)["a"] == 1
    repository = tmp_path / "hub" / "models--Org--Name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, repository / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert Checkpoint.open(snapshot)["a"] == 1
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    assert Checkpoint.open(link)["a"] == 1
    shared = tmp_path / "hub" / "blobs" / "shared"
    save_file({"a": torch.ones(1)}, shared)
    (repository / "blobs" / "abc").unlink()
    (repository / "blobs" / "abc").symlink_to("../../blobs/shared")
    assert Checkpoint.open(snapshot)["a"] == 1
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(local / "weights")
    with pytest.raises(FormatError, match="leaves"):
        Checkpoint.open(snapshot)


class Bomb:
    """Leaves a marker when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.marker.write_text, ("run",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "x.ckpt", "x.pkl"])
def test_K155_K156_pickles_alone_are_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    marker = tmp_path / "marker"
    model = tmp_path / "model"
    model.mkdir()
    (model / name).write_bytes(pickle.dumps(Bomb(marker)))
    opened: list[str] = []
    real = os.open

    def watch(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(os.fspath(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", watch)
    with pytest.raises(FormatError, match=f"only as pickle .*{name}.*never does it: take a model"):
        Checkpoint.open(model)
    assert not marker.exists() and opened == []


def test_K157_a_torch_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(FormatError, match="only as pickle"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(FormatError):
        Checkpoint.open(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


def test_K155_safetensors_go_before_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert Checkpoint.open(tmp_path).keys() == {"a"} and not (tmp_path / "marker").exists()


def test_K174_no_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "a\0b"):
        with pytest.raises(FormatError, match="cannot be listed"):
            find_weights(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="Not a directory"):
        find_weights(tmp_path / "file")
    with pytest.raises(FormatError, match=r"neither model\.safetensors nor"):
        find_weights(tmp_path)
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(FormatError, match="GGUF"):
        find_weights(tmp_path)
    (tmp_path / SHARD).write_text("")
    with pytest.raises(FormatError, match=r"but no model\.safetensors\.index\.json"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FormatError, match="is a directory"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Model-1.safetensors", "model-1.safetensors"),
        ("é.safetensors", "e\u0301.safetensors"),
        ("ﬁle.safetensors", "file.safetensors"),
        ("straße.safetensors", "STRASSE.safetensors"),
        ("Ａ.safetensors", "a.safetensors"),
        ("K.safetensors", "\u212a.safetensors"),
    ],
)
def test_K175_names_that_fold_together(tmp_path: Path, one: str, two: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / one)
    save_file({"b": torch.ones(1)}, tmp_path / two)
    index(tmp_path, {"weight_map": {"a": one, "b": two}})
    with pytest.raises(FormatError, match="cannot tell apart"):
        Checkpoint.open(tmp_path)


def test_plain_names() -> None:
    good = ["model-00001-of-00002.safetensors", "模型.safetensors", "a b.safetensors"]
    assert [name_fault(name) for name in good] == [None] * 3
    check_names(good, "index")
    with pytest.raises(FormatError, match=r"does not end with \.safetensors"):
        check_names(["model.txt"], "index")
