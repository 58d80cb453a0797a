"""Names to directories: local, embedded, cached, downloaded; the order of the hubs; being
offline.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenkit.errors import HubError, ModelNotFoundError, OfflineError, OptionError
from qwenkit.io import hub as hub_module
from qwenkit.io import huggingface, modelscope
from qwenkit.io.hub import ModelRef, list_cached, resolve

NAME = "Org/Model"
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def repo(hub: Any, model_files: dict[str, bytes]) -> Any:
    hub.repos[NAME] = model_files
    return hub


def test_local_folder(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "my model 模型"
    model.mkdir()
    with pytest.raises(ModelNotFoundError, match="folder without config.json"):
        resolve(str(model))
    (model / "config.json").write_text("{}")
    assert resolve(str(model)) == resolve(model) == model
    monkeypatch.chdir(tmp_path)
    assert resolve("./my model 模型") == Path("my model 模型")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve(str(model / "config.json"))
    for absent in ("./absent", "/absent", "~/absent", tmp_path / "absent"):
        with pytest.raises(ModelNotFoundError, match="no folder"):
            resolve(absent)
    assert hub.requests == []


def test_a_folder_named_like_a_repository_goes_first(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    (tmp_path / NAME / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve(NAME) == Path(NAME) and repo.requests == []


@pytest.mark.parametrize("name", ["tiny", "tiny-instruct"])
def test_embedded_models(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hub_module, "ASSETS", tmp_path / "assets")
    with pytest.raises(ModelNotFoundError, match=f"lacks its embedded model '{name}'.*make tiny"):
        resolve(name)
    assert list_cached() == []
    folder = tmp_path / "assets" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert resolve(name) == folder, "a folder of that name here is written ./tiny"
    [model] = list_cached()
    assert (model.ref, model.source, model.size_bytes, model.path) == (name, "embedded", 2, folder)


def test_a_download_is_cached_and_then_needs_no_network(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int, int]] = []
    path = resolve(NAME, progress=lambda *event: events.append(event))
    assert path == huggingface.cached(ModelRef("Org", "Model"))
    assert {name for name, done, total in events if done == total} >= {
        "config.json",
        "model.safetensors",
    }
    repo.requests.clear()
    assert resolve(NAME) == path == resolve(NAME, offline=True)
    assert repo.requests == []
    assert resolve(NAME, refresh=True) == path and repo.requests != []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "QWENKIT_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(repo: Any, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match="switched off.*Unset HF_HUB_OFFLINE"):
        resolve(NAME)
    assert repo.requests == []
    path = resolve(NAME, offline=False)
    repo.requests.clear()
    assert resolve(NAME, refresh=True) == path and repo.requests == []


def test_auto_falls_back_when_the_first_hub_has_no_such_model(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = huggingface.download
    calls = []

    def not_there(ref: ModelRef, progress: Any) -> Path:
        calls.append(ref)
        return real(ModelRef("Org", "Nothing"), progress)

    monkeypatch.setattr(huggingface, "download", not_there)
    assert resolve(NAME) == modelscope.cached(ModelRef("Org", "Model")) and len(calls) == 1


@pytest.mark.parametrize("fault", ["unreachable", "broken"])
def test_auto_falls_back_when_the_first_hub_is_down(
    repo: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", DEAD)
    else:
        repo.faults["*"] = [("status", 503, {})] * 4
    assert resolve(NAME) == modelscope.cached(ModelRef("Org", "Model"))


def test_auto_does_not_fall_back_from_a_wrong_digest_or_a_gate(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("corrupt",)]
    with pytest.raises(HubError, match="digest"):
        resolve(NAME)
    repo.gated = True
    with pytest.raises(HubError, match="gated"):
        resolve(NAME)
    assert not [p for _, p, _ in repo.requests if p.startswith("/api/v1")]


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_source_can_be_chosen(repo: Any, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "environment":
        monkeypatch.setenv("QWENKIT_HUB", "modelscope")
    path = resolve(NAME, source="modelscope" if by == "argument" else "auto")
    assert path == modelscope.cached(ModelRef("Org", "Model"))
    assert huggingface.cached(ModelRef("Org", "Model")) is None
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", DEAD)
    with pytest.raises(OfflineError, match="127.0.0.1:9"):
        resolve("Org/Other", source="modelscope")


def test_an_unknown_source_is_an_option_error(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="'github'.*huggingface"):
        resolve(NAME, source="github")
    monkeypatch.setenv("QWENKIT_HUB", "nowhere")
    with pytest.raises(OptionError, match="nowhere"):
        resolve(NAME)


def test_no_network_at_all_names_both_hubs_and_a_remedy(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:10")
    with pytest.raises(OfflineError) as caught:
        resolve(NAME)
    assert "127.0.0.1:9" in str(caught.value) and "127.0.0.1:10" in str(caught.value)
    assert "\n" not in str(caught.value) and "Check the network" in str(caught.value)


def test_one_hub_down_and_no_such_model_on_the_other(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    with pytest.raises(HubError, match="cannot be reached.*ModelScope has no model") as caught:
        resolve(NAME)
    assert not isinstance(caught.value, (OfflineError, ModelNotFoundError))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Qwen/Qwen2.5-7B-Instuct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen-2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("tiny-instruc", "tiny-instruct"),
    ],
)
def test_an_unknown_model_suggests_near_names(hub: Any, written: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(written)
    assert "Did you mean" in str(caught.value) and meant in str(caught.value)


HOSTILE = [
    "../../etc",
    "..",
    "a\0b",
    "Org/Model\0",
    "x" * 1_000_000,
    "Org/" + "x" * 1_000_000,
    "",
    "a\nb/c",
    "https://huggingface.co/Org/Model",
    "Org/Model/extra",
    "Org\\Model",
    "Org/../Model",
    "Org/Mo--del",
    "-Org/Model",
    "Org/.hidden",
    "Org/Model@",
    "Org/Model@../../x",
    "Org/Model@a@b",
    "Org/Model@/etc",
    "Org/Model?x=1",
    "Org/Model#x",
    "Org/Mödel",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_K29_hostile_names_are_not_found_and_reach_no_hub(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert hub.requests == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_K29_the_parser_of_names_touches_no_file(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    touched = []
    for function in ("stat", "open", "listdir", "lstat"):
        monkeypatch.setattr(f"os.{function}", lambda *args, **_: touched.append(args))
    try:
        ModelRef.parse(name)
        parsed = True
    except ModelNotFoundError:
        parsed = False
    monkeypatch.undo()
    assert touched == [] and not parsed


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Qwen/Qwen2.5-0.5B", ("Qwen", "Qwen2.5-0.5B", None)),
        ("a/b@main", ("a", "b", "main")),
        ("a/b@refs/pr/1", ("a", "b", "refs/pr/1")),
        ("a_b/c.d-e_", ("a_b", "c.d-e_", None)),
        ("a/b@" + "0" * 40, ("a", "b", "0" * 40)),
    ],
)
def test_model_ref(text: str, parts: tuple[str, str, str | None]) -> None:
    ref = ModelRef.parse(text)
    assert (ref.org, ref.name, ref.revision) == parts and str(ref) == text


def test_list_cached(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ASSETS", tmp_path / "assets")
    assert list_cached() == []
    first = resolve(NAME)
    repo.repos[NAME]["config.json"] = b'{"model_type": "qwen2", "second": 1}'
    second = resolve(NAME, refresh=True)
    third = resolve(f"{NAME}@v1", source="modelscope")
    (huggingface.cache_root() / "models--Org--Half" / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (huggingface.cache_root() / "models--a--b--c" / "snapshots").mkdir(parents=True)
    models = {(m.ref, m.source, m.revision): m.path for m in list_cached()}
    assert models == {
        (NAME, "huggingface", second.name): second,
        (f"{NAME}@{first.name}", "huggingface", first.name): first,
        (f"{NAME}@v1", "modelscope", "v1"): third,
    }
    for model in list_cached():
        assert resolve(model.ref, source=model.source, offline=True) == model.path
        assert model.size_bytes == sum(p.stat().st_size for p in model.path.iterdir())


def test_the_module_imports_neither_torch_nor_huggingface_hub() -> None:
    code = (
        "import sys, qwenkit.io.hub; heavy = ('torch', 'huggingface_hub', 'httpx', 'safetensors'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
