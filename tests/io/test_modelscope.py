"""ModelScope: protocol, faults on the way, and both layouts of its cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qwenkit.errors import HubError, ModelNotFoundError, OfflineError
from qwenkit.io import modelscope
from qwenkit.io.names import ModelRef

REF = ModelRef("Org", "Model-2.5")


@pytest.fixture
def repo(hub: Any, model_files: dict[str, bytes]) -> Any:
    hub.repos["Org/Model-2.5"] = model_files
    return hub


def leftovers() -> list[str]:
    return [p.name for p in modelscope.cache_root().rglob("*.incomplete")]


def test_download_into_the_layout_of_the_client(repo: Any, model_files: dict[str, bytes]) -> None:
    path = modelscope.download(REF)
    assert path == modelscope.cache_root() / "models" / "Org--Model-2.5" / "snapshots" / "master"
    assert sorted(p.name for p in path.iterdir()) == [
        "LICENSE",
        "README.md",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert all(p.read_bytes() == model_files[p.name] for p in path.iterdir())
    assert modelscope.cached(REF) == path


def test_revision(repo: Any) -> None:
    path = modelscope.download(ModelRef("Org", "Model-2.5", "v1"))
    assert path.name == "v1" and modelscope.cached(REF) is None
    with pytest.raises(ModelNotFoundError, match="no model Org/Model-2.5@v9"):
        modelscope.download(ModelRef("Org", "Model-2.5", "v9"))


def test_an_update_brings_what_changed_and_takes_away_old_weights(
    repo: Any, model_files: dict[str, bytes]
) -> None:
    path = modelscope.download(REF)
    repo.requests.clear()
    modelscope.download(REF)
    assert len(repo.requests) == 1, "the listing alone"
    model_files["config.json"] = b'{"model_type": "qwen2", "new": true}'
    model_files["model-00001-of-00001.safetensors"] = model_files.pop("model.safetensors")
    model_files["model.safetensors.index.json"] = (
        b'{"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}'
    )
    assert modelscope.download(REF) == path
    assert not (path / "model.safetensors").exists() and modelscope.cached(REF) == path
    assert (path / "config.json").read_bytes() == model_files["config.json"]
    assert repo.downloads("tokenizer.json") == []


def test_an_update_that_breaks_off_leaves_the_old_model(
    repo: Any, model_files: dict[str, bytes]
) -> None:
    path = modelscope.download(REF)
    old = {p.name: p.read_bytes() for p in path.iterdir()}
    model_files["config.json"] = b'{"model_type": "qwen2", "new": true}'
    model_files["model.safetensors"] = model_files["model.safetensors"][:-4] + b"\1\2\3\4"
    repo.faults["model.safetensors"] = [("cut", 2000)] + [("cut", 0)] * 3
    with pytest.raises(HubError, match="stopped at 2000"):
        modelscope.download(REF)
    assert modelscope.cached(REF) == path
    assert {n: (path / n).read_bytes() for n in old} == old
    repo.requests.clear()
    modelscope.download(REF)
    assert repo.downloads("model.safetensors") == ["bytes=2000-"] and leftovers() == []
    assert repo.downloads("config.json") == [], "it lay ready since the first attempt"
    assert (path / "model.safetensors").read_bytes() == model_files["model.safetensors"]


@pytest.mark.parametrize("stop", range(8))
def test_a_crash_while_files_change_places_never_leaves_a_mixture(
    repo: Any, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    path = modelscope.download(REF)
    old = {p.name: p.read_bytes() for p in path.iterdir()}
    for name in ("config.json", "tokenizer.json", "merges.txt", "model.safetensors"):
        model_files[name] = model_files[name][:-1] + b"!"
    real, calls = os.replace, []

    def crash(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > stop:
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(modelscope.os, "replace", crash)
    if stop < 4:
        with pytest.raises(SystemExit):
            modelscope.download(REF)
    else:
        modelscope.download(REF)
    monkeypatch.setattr(modelscope.os, "replace", real)
    current = {n: (path / n).read_bytes() for n in old if (path / n).exists()}
    new = {n: model_files[n] for n in old}
    assert modelscope.cached(REF) is None or current in (old, new)
    assert modelscope.download(REF) == path and modelscope.cached(REF) == path
    assert {n: (path / n).read_bytes() for n in old} == new and leftovers() == []


@pytest.mark.parametrize("cuts", [[0], [1], [777, 5000]], ids=str)
def test_K172_a_cut_connection_is_continued_where_it_broke(repo: Any, cuts: list[int]) -> None:
    repo.faults["model.safetensors"] = [("cut", n) for n in cuts]
    path = modelscope.download(REF)
    expected = repo.repos["Org/Model-2.5"]["model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == expected
    last = sum(cuts)
    assert repo.downloads("model.safetensors")[-1] == (f"bytes={last}-" if last else None)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_K172_a_wrong_digest_is_refused_and_removed(repo: Any, name: str) -> None:
    repo.faults[name] = [("corrupt",)]
    with pytest.raises(HubError, match=f"{name} .*wrong SHA digest; it was removed"):
        modelscope.download(REF)
    assert modelscope.cached(REF) is None and f"{name}.incomplete" not in leftovers()
    assert modelscope.download(REF).is_dir()


def test_weights_without_a_digest_are_refused(repo: Any) -> None:
    repo.listing = lambda entries: [e | {"Sha256": ""} for e in entries]
    with pytest.raises(HubError, match="without a digest"):
        modelscope.download(REF)


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/evil.json", "a\\evil.json", "evil\0.json"], ids=ascii
)
def test_K153_hostile_names_in_a_listing_are_refused(repo: Any, tmp_path: Path, path: str) -> None:
    repo.listing = lambda entries: [{**entries[0], "Path": path}, *entries[1:]]
    with pytest.raises(HubError, match="impossible file"):
        modelscope.download(REF)
    assert not list(tmp_path.rglob("*evil*"))


def test_unknown_model(repo: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="ModelScope has no model Org/Nothing"):
        modelscope.download(ModelRef("Org", "Nothing"))
    assert not modelscope.cache_root().exists()


@pytest.mark.parametrize("code", [401, 403])
def test_gated_model_needs_a_token(repo: Any, code: int) -> None:
    repo.faults["*"] = [("status", code, {})]
    with pytest.raises(HubError, match="strangers.*MODELSCOPE_API_TOKEN"):
        modelscope.download(REF)


def test_a_token_is_sent_as_the_client_sends_it(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    modelscope.download(REF)
    assert all(h["authorization"] == "Bearer ms-secret" for _, _, h in repo.requests)
    assert all(h["cookie"] == "m_session_id=ms-secret" for _, _, h in repo.requests)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "a; b=c")
    with pytest.raises(HubError, match="MODELSCOPE_API_TOKEN"):
        modelscope.download(REF)


def test_no_network(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match="cannot be reached"):
        modelscope.download(REF)


@pytest.mark.parametrize("base", ["models", "hub/models"])
def test_the_layout_of_older_clients_is_read(
    repo: Any, model_files: dict[str, bytes], base: str
) -> None:
    place = modelscope.cache_root() / base / "Org" / "Model-2___5"
    place.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (place / name).write_bytes(model_files[name])
    assert modelscope.cached(REF) == place
    assert modelscope.cached(ModelRef("Org", "Model-2.5", "v1")) is None
    assert [(m.ref, m.path) for m in modelscope.scan()] == [("Org/Model-2.5", place)]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "https://modelscope.cn"),
        ({"MODELSCOPE_DOMAIN": "www.modelscope.ai"}, "https://www.modelscope.ai"),
        ({"MODELSCOPE_DOMAIN": "a.b", "MODELSCOPE_ENDPOINT": "http://c.d:1/"}, "http://c.d:1"),
    ],
    ids=str,
)
def test_endpoint(
    hub: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert modelscope.endpoint() == expected
