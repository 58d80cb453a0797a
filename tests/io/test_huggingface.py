"""Hugging Face: protocol, faults on the way, and a cache that `huggingface_hub` shares."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from qwenkit.errors import HubError, ModelNotFoundError, OfflineError
from qwenkit.io import download, huggingface
from qwenkit.io.names import ModelRef

REF = ModelRef("Org", "Model")
WANTED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "merges.txt",
    "README.md",
    "LICENSE",
    "model.safetensors",
}


@pytest.fixture
def repo(hub: Any, model_files: dict[str, bytes]) -> Any:
    hub.repos["Org/Model"] = model_files
    return hub


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Every write beyond `limit` bytes of a file fails with EFBIG, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leftovers() -> list[str]:
    return [
        p.name
        for p in huggingface.cache_root().rglob("*")
        if "incomplete" in p.name or ".tmp" in p.name
    ]


def test_download_brings_the_wanted_files_and_no_others(
    repo: Any, model_files: dict[str, bytes]
) -> None:
    path = huggingface.download(REF)
    assert {p.name for p in path.iterdir()} == WANTED
    assert all((path / name).read_bytes() == model_files[name] for name in WANTED)
    assert path.name == repo.commit("Org/Model") and path.parent.name == "snapshots"
    assert (path.parent.parent / "refs" / "main").read_text() == path.name
    assert huggingface.cached(REF) == path and leftovers() == []
    assert repo.downloads("pytorch_model.bin") == []


def test_second_download_fetches_nothing_and_an_update_only_what_changed(
    repo: Any, model_files: dict[str, bytes]
) -> None:
    first = huggingface.download(REF)
    repo.requests.clear()
    assert huggingface.download(REF) == first
    assert not [p for _, p, _ in repo.requests if "/resolve/" in p]
    model_files["config.json"] = b'{"model_type": "qwen2", "new": 1}'
    second = huggingface.download(REF)
    assert [p for _, p, _ in repo.requests if "/resolve/" in p] == [
        f"/Org/Model/resolve/{second.name}/config.json"
    ]
    assert second != first and first.is_dir() and huggingface.cached(REF) == second


def test_a_cache_written_here_is_read_by_huggingface_hub(repo: Any) -> None:
    path = huggingface.download(REF)
    root = huggingface.cache_root()
    theirs = huggingface_hub.snapshot_download("Org/Model", cache_dir=root, local_files_only=True)
    assert Path(theirs) == path
    info = huggingface_hub.scan_cache_dir(root)
    assert not info.warnings and [r.repo_id for r in info.repos] == ["Org/Model"]
    assert {f.file_name for r in info.repos for v in r.revisions for f in v.files} == WANTED


def test_a_cache_written_by_huggingface_hub_is_read_here(repo: Any) -> None:
    root = huggingface.cache_root()
    theirs = huggingface_hub.snapshot_download(
        "Org/Model", cache_dir=root, endpoint=repo.url, max_workers=1
    )
    repo.requests.clear()
    assert huggingface.cached(REF) == Path(theirs)
    assert huggingface.download(REF) == Path(theirs)
    assert not [p for _, p, _ in repo.requests if "/resolve/" in p and p.endswith(".safetensors")]


def test_a_mirror_that_passes_on_links_to_the_original_is_asked_for_all_pages(repo: Any) -> None:
    repo.link_host = "https://elsewhere.example"
    assert {p.name for p in huggingface.download(REF).iterdir()} == WANTED


def test_revisions(repo: Any) -> None:
    commit = repo.commit("Org/Model")
    tagged = huggingface.download(ModelRef("Org", "Model", "v1"))
    assert tagged.name == commit and huggingface.cached(ModelRef("Org", "Model", "v1")) == tagged
    assert huggingface.cached(ModelRef("Org", "Model", commit)) == tagged
    assert huggingface.cached(REF) is None, "main was never asked for"
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        huggingface.download(ModelRef("Org", "Model", "v9"))


@pytest.mark.parametrize("cuts", [[0], [1], [777, 5000], [100_000, 0, 50_000]], ids=str)
def test_K172_a_cut_connection_is_continued_where_it_broke(repo: Any, cuts: list[int]) -> None:
    repo.faults["model.safetensors"] = [("cut", n) for n in cuts]
    path = huggingface.download(REF)
    assert (path / "model.safetensors").read_bytes() == repo.repos["Org/Model"]["model.safetensors"]
    offsets, have = [], 0
    for n in cuts:
        have += n
        offsets.append(f"bytes={have}-" if have else None)
    assert repo.downloads("model.safetensors") == [None, *offsets]


def test_K172_a_broken_download_is_continued_by_the_next_run(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("cut", 1000)] + [("cut", 0)] * 3
    with pytest.raises(HubError, match=r"stopped at 1000 of 2\d{5} bytes.*continues"):
        huggingface.download(REF)
    assert huggingface.cached(REF) is None and len(leftovers()) == 1
    repo.requests.clear()
    seen: list[tuple[str, int, int]] = []
    path = huggingface.download(REF, lambda *event: seen.append(event))
    assert repo.downloads("model.safetensors") == ["bytes=1000-"] and leftovers() == []
    mine = [(done, total) for name, done, total in seen if name == "model.safetensors"]
    size = (path / "model.safetensors").stat().st_size
    assert mine[0] == (1000, size) and mine[-1] == (size, size) and mine == sorted(mine)


def test_K172_an_interrupt_keeps_the_part(repo: Any) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == "model.safetensors" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        huggingface.download(REF, interrupt)
    assert len(leftovers()) == 1 and huggingface.cached(REF) is None
    huggingface.download(REF)
    assert str(repo.downloads("model.safetensors")[-1]).startswith("bytes=")


def test_a_server_that_ignores_ranges_starts_over(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("cut", 1000), ("norange",)]
    path = huggingface.download(REF)
    assert (path / "model.safetensors").read_bytes() == repo.repos["Org/Model"]["model.safetensors"]


def test_a_server_with_the_wrong_range_is_refused(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("cut", 1000), ("range", 7)]
    with pytest.raises(HubError, match="wrong range"):
        huggingface.download(REF)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_K172_a_wrong_digest_is_refused_and_removed(repo: Any, name: str) -> None:
    repo.faults[name] = [("corrupt",)]
    with pytest.raises(HubError, match=f"{name} .*wrong SHA digest; it was removed"):
        huggingface.download(REF)
    assert leftovers() == [] and huggingface.cached(REF) is None
    assert not (huggingface.cache_root() / "models--Org--Model" / "refs").exists()
    assert huggingface.download(REF).is_dir(), "the next attempt succeeds"


def test_K172_a_rotten_part_is_replaced_once(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("cut", 5000)] + [("cut", 0)] * 3
    with pytest.raises(HubError):
        huggingface.download(REF)
    [part] = huggingface.cache_root().rglob("*.incomplete")
    part.write_bytes(b"\xff" * 5000)
    path = huggingface.download(REF)
    assert (path / "model.safetensors").read_bytes() == repo.repos["Org/Model"]["model.safetensors"]
    assert repo.downloads("model.safetensors")[-2:] == ["bytes=5000-", None]


def test_a_part_longer_than_the_file_is_replaced(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("cut", 5000)] + [("cut", 0)] * 3
    with pytest.raises(HubError):
        huggingface.download(REF)
    [part] = huggingface.cache_root().rglob("*.incomplete")
    part.write_bytes(b"\xff" * 900_000)
    assert huggingface.download(REF).is_dir()


def test_a_truncated_blob_is_fetched_again(repo: Any) -> None:
    path = huggingface.download(REF)
    blob = (path / "model.safetensors").resolve()
    os.truncate(blob, 10)
    huggingface.download(REF)
    assert blob.read_bytes() == repo.repos["Org/Model"]["model.safetensors"]


def test_a_longer_answer_than_announced_is_refused(repo: Any) -> None:
    repo.faults["model.safetensors"] = [("long", 10)]
    with pytest.raises(HubError, match="should have"):
        huggingface.download(REF)


def test_server_errors_are_retried(repo: Any) -> None:
    repo.faults["*"] = [("status", 500, {}), ("status", 503, {"Retry-After": "0"})]
    repo.faults["model.safetensors"] = [("status", 502, {}), ("status", 429, {})]
    assert huggingface.download(REF).is_dir()
    assert len(repo.downloads("model.safetensors")) == 3


def test_a_server_that_stays_broken_is_named(repo: Any) -> None:
    repo.faults["*"] = [("status", 500, {})] * 4
    with pytest.raises(HubError, match="answered 500"):
        huggingface.download(REF)


def test_slow_is_fine_and_stalled_is_continued(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = dataclasses.replace(download.POLICY, timeout=0.5, attempts=20)
    monkeypatch.setattr(download, "POLICY", patience)
    repo.faults["model.safetensors"] = [("stall", 0.8), ("slow", 0.02)]
    seen: list[int] = []
    huggingface.download(REF, lambda name, done, total: seen.append(done))
    assert len(repo.downloads("model.safetensors")) >= 2 and len(seen) > 10


def test_unknown_model_is_not_found(repo: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="no model Org/Nothing, or it is private"):
        huggingface.download(ModelRef("Org", "Nothing"))
    assert not huggingface.cache_root().exists(), "nothing is left behind"


def test_gated_model_needs_a_token(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated = True
    with pytest.raises(
        HubError, match=r"gated on Hugging Face. Accept its terms at .* set HF_TOKEN"
    ):
        huggingface.download(REF)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert huggingface.download(REF).is_dir()


def test_rejected_token_is_named(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    message = {"X-Error-Message": "Invalid credentials in Authorization header"}
    repo.faults["*"] = [("status", 401, message)]
    with pytest.raises(HubError, match="rejects the token"):
        huggingface.download(REF)


def test_the_token_does_not_follow_a_redirect_to_another_host(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repo.cdn = repo.url.replace("127.0.0.1", "localhost")
    repo.faults["model.safetensors"] = [("cut", 4000)]
    assert huggingface.download(REF).is_dir()
    to_cdn = [h for _, p, h in repo.requests if p.startswith("/cdn/")]
    to_hub = [h for _, p, h in repo.requests if not p.startswith("/cdn/")]
    assert [h.get("range") for h in to_cdn] == [None, "bytes=4000-"]
    assert not any("authorization" in h for h in to_cdn)
    assert all(h["authorization"] == "Bearer hf_secret" for h in to_hub)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_a_redirect_to_another_scheme_is_refused(repo: Any, place: str) -> None:
    repo.faults["model.safetensors"] = [("status", 302, {"Location": place})]
    with pytest.raises(HubError):
        huggingface.download(REF)
    assert huggingface.cached(REF) is None


@pytest.mark.parametrize("token", ["a b", "a\r\nX-Evil: 1", "ü"], ids=ascii)
def test_a_token_that_would_break_the_header_is_refused(
    repo: Any, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="HF_TOKEN"):
        huggingface.download(REF)
    assert repo.requests == []


def test_token_file_of_hf_auth_login(repo: Any, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_from_file\n")
    huggingface.download(REF)
    assert all(h["authorization"] == "Bearer hf_from_file" for _, _, h in repo.requests)


def test_K173_a_full_disk_leaves_no_part(repo: Any) -> None:
    with file_size_limit(65_536), pytest.raises(HubError, match="disk is full.*Free space"):
        huggingface.download(REF)
    assert leftovers() == [] and huggingface.cached(REF) is None
    assert huggingface.download(REF).is_dir()


def test_K173_too_little_space_is_seen_before_the_first_byte(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match=r"needs 19\d\.\d KiB more; .* has 1000 B free"):
        huggingface.download(REF)
    assert not [p for _, p, _ in repo.requests if "/resolve/" in p]


def test_K174_a_cache_that_cannot_be_written_is_named(repo: Any, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("a file where the cache should be")
    with pytest.raises(HubError, match="cannot be written"):
        huggingface.download(REF)


@pytest.mark.parametrize(
    "path",
    [
        "../evil.json",
        "/etc/evil.json",
        "a\\..\\evil.json",
        "evil\0.json",
        "C:evil.json",
        "",
        "x/../../evil.json",
        7,
    ],
    ids=ascii,
)
def test_K153_hostile_names_in_a_listing_are_refused(repo: Any, tmp_path: Path, path: Any) -> None:
    repo.listing = lambda entries: [{**entries[0], "path": path}, *entries[1:]]
    with pytest.raises(HubError, match="impossible file"):
        huggingface.download(REF)
    assert not list(tmp_path.rglob("*evil*"))


def test_K175_names_that_differ_only_in_case_are_refused(
    repo: Any, model_files: dict[str, bytes]
) -> None:
    model_files["CONFIG.json"] = b"{}"
    with pytest.raises(HubError, match="cannot tell apart"):
        huggingface.download(REF)


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": "5"},
        {"size": None},
        {"oid": "../x"},
        {"oid": None},
        {"lfs": {"oid": "zz", "size": 1}},
    ],
    ids=str,
)
def test_a_malformed_listing_is_refused(repo: Any, change: dict[str, Any]) -> None:
    repo.listing = lambda entries: [
        e | change if e["path"] == "config.json" else e for e in entries
    ]
    with pytest.raises(HubError):
        huggingface.download(REF)
    assert huggingface.cached(REF) is None


def test_K155_a_repository_with_pickles_only_is_refused_before_a_download(
    repo: Any, model_files: dict[str, bytes]
) -> None:
    del model_files["model.safetensors"]
    with pytest.raises(HubError, match=r"only pickled weights \(.bin\)"):
        huggingface.download(REF)
    assert not [p for _, p, _ in repo.requests if "/resolve/" in p]


def test_no_network(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match="127.0.0.1:9 cannot be reached"):
        huggingface.download(REF)


def test_a_portal_that_answers_with_a_page_is_named(repo: Any) -> None:
    repo.faults["*"] = [("status", 200, {"Content-Type": "text/html"})]
    with pytest.raises(HubError, match="did not answer with JSON"):
        huggingface.download(REF)


def test_incomplete_snapshots_do_not_count(repo: Any) -> None:
    path = huggingface.download(REF)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        target = os.readlink(path / name)
        (path / name).unlink()
        assert huggingface.cached(REF) is None, name
        os.symlink("../../blobs/absent", path / name)
        assert name == "tokenizer.json" or huggingface.cached(REF) is None, name
        (path / name).unlink()
        os.symlink(target, path / name)
    assert huggingface.cached(REF) == path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HF_HOME": "/h", "HF_HUB_CACHE": "~/c"}, "~/c"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    ],
    ids=str,
)
def test_cache_root(
    hub: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.delenv("HF_HOME")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert huggingface.cache_root() == Path(expected).expanduser()
