"""Hugging Face: its cache, read and written in the layout of `huggingface_hub`, and its HTTP
protocol.

    $HF_HUB_CACHE/models--ORG--NAME/blobs/<digest>                 the content, once
                                    snapshots/<commit>/<file>      links to blobs
                                    refs/<branch or tag>           the commit it stood for
    $HF_HUB_CACHE/.locks/models--ORG--NAME/<digest>.lock

A listing gives every file's digest (SHA-256 for large files, git's blob id for small ones), and
each is verified. A branch's ref moves only after its whole snapshot is there. The environment is
read at each call: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, XDG_CACHE_HOME, and
the older HUGGINGFACE_HUB_CACHE, HUGGING_FACE_HUB_TOKEN.

Why not `huggingface_hub`: it reads the environment once at import, starts an interrupted file
afresh, and does not compare digests of plain downloads. Not covered: data sets, Xet transfers (the
plain HTTP way is taken).
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenkit.errors import HubError, ModelNotFoundError
from qwenkit.io.download import POLICY, check_space, disk_errors, fetch, locked
from qwenkit.io.http import StatusError, get_json, next_page
from qwenkit.io.names import (
    CachedModel,
    ModelRef,
    Progress,
    RemoteFile,
    directory_bytes,
    is_complete,
    listed_file,
    wanted_files,
)
from qwenkit.utils import write_text

TITLE = "Hugging Face"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_PAGES = 100


def cache_root() -> Path:
    """The cache that `huggingface_hub` would use with this environment."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(
        env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    root = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(root)))


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cached(ref: ModelRef) -> Path | None:
    """The complete snapshot of a model in the cache, or None. No network."""
    repository = _repository(ref)
    revision = ref.revision or "main"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (repository / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeError):
            return None
        if not _COMMIT.fullmatch(commit):
            return None
    snapshot = repository / "snapshots" / commit
    return snapshot if is_complete(snapshot) else None


def scan() -> Iterator[CachedModel]:
    """The complete snapshots in the cache, by name and commit."""
    for repository in sorted(cache_root().glob("models--*--*")):
        org, _, name = repository.name.removeprefix("models--").partition("--")
        with contextlib.suppress(ModelNotFoundError):
            ref = ModelRef.parse(f"{org}/{name}")
            current = cached(ref)
            for snapshot in sorted(repository.glob("snapshots/*")):
                if _COMMIT.fullmatch(snapshot.name) and is_complete(snapshot):
                    text = ref.repo if snapshot == current else f"{ref.repo}@{snapshot.name}"
                    size = directory_bytes(snapshot)
                    yield CachedModel(text, snapshot, "huggingface", size, snapshot.name)


def download(ref: ModelRef, progress: Progress | None = None) -> Path:
    """Bring a model into the cache, or up to date, and return its snapshot.

    Errors: ModelNotFoundError (no such model or revision), UnreachableError (no network), HubError.
    """
    with _explained(ref):
        headers = _headers()
        commit = _commit(ref, headers)
        files = wanted_files(_list(ref, commit, headers), ref.repo)
        repository = _repository(ref)
        snapshot = repository / "snapshots" / commit
        missing = [f for f in files if not _has_blob(repository, f)]
        parts = [(f, _part(repository, f)) for f in missing]
        check_space(repository / "blobs", parts, ref.repo)
        for file, part in parts:
            lock = cache_root() / ".locks" / repository.name / f"{_digest(file)}.lock"
            with locked(lock):
                if not _has_blob(repository, file):
                    fetch(file, part, headers, progress)
                    with disk_errors(part):
                        os.replace(part, _blob(repository, file))
        for file in files:
            _link(_blob(repository, file), snapshot / file.path)
        revision = ref.revision or "main"
        if revision != commit:
            with disk_errors(repository / "refs"):
                write_text(repository / "refs" / revision, commit)
    return snapshot


def _repository(ref: ModelRef) -> Path:
    return cache_root() / f"models--{ref.org}--{ref.name}"


def _digest(file: RemoteFile) -> str:
    digest = file.sha256 or file.git_sha1 or ""
    if not _DIGEST.fullmatch(digest):
        raise HubError(f"{TITLE} lists {file.path} without a digest.", "Check HF_ENDPOINT.")
    return digest


def _blob(repository: Path, file: RemoteFile) -> Path:
    return repository / "blobs" / _digest(file)


def _has_blob(repository: Path, file: RemoteFile) -> bool:
    """By name and size; the digest was compared when the blob came."""
    blob = _blob(repository, file)
    return blob.is_file() and blob.stat().st_size == file.size


def _part(repository: Path, file: RemoteFile) -> Path:
    return repository / "blobs" / f"{_digest(file)}.incomplete"


def _link(blob: Path, pointer: Path) -> None:
    """Let `pointer` be a relative link to `blob`, whatever it was before."""
    with disk_errors(pointer):
        pointer.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob, pointer.parent)
        if pointer.is_symlink() and os.readlink(pointer) == target:
            return
        if pointer.is_symlink() or pointer.exists():
            pointer.unlink()
        os.symlink(target, pointer)


def _commit(ref: ModelRef, headers: dict[str, str]) -> str:
    revision = urllib.parse.quote(ref.revision or "main", safe="")
    answer, _ = get_json(f"{endpoint()}/api/models/{ref.repo}/revision/{revision}", headers, POLICY)
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        raise HubError(f"{TITLE} gives no commit for {ref}.", "Check HF_ENDPOINT.")
    return commit


def _list(ref: ModelRef, commit: str, headers: dict[str, str]) -> Iterator[RemoteFile]:
    """The files of a commit, over all pages of the listing."""
    url: str | None = (
        f"{endpoint()}/api/models/{ref.repo}/tree/{commit}?recursive=true&expand=false"
    )
    for _ in range(_MAX_PAGES):
        assert url is not None
        page, answer_headers = get_json(url, headers, POLICY)
        if not (isinstance(page, list) and all(isinstance(entry, dict) for entry in page)):
            raise HubError(f"{TITLE} gives no list of files for {ref}.", "Check HF_ENDPOINT.")
        yield from (_entry(ref, commit, entry) for entry in page if entry.get("type") == "file")
        url = next_page(answer_headers, url)
        if url is None:
            return
    raise HubError(f"{ref} has too many files for a model.", "Check the name.")


def _entry(ref: ModelRef, commit: str, entry: dict[str, Any]) -> RemoteFile:
    path, lfs = entry.get("path"), entry.get("lfs")
    lfs = lfs if isinstance(lfs, dict) else {}
    size = lfs.get("size", entry.get("size"))
    url = f"{endpoint()}/{ref.repo}/resolve/{commit}/{urllib.parse.quote(str(path))}"
    sha256 = lfs.get("oid")
    git_sha1 = None if lfs else entry.get("oid")
    if not all(
        d is None or (isinstance(d, str) and _DIGEST.fullmatch(d)) for d in (sha256, git_sha1)
    ):
        raise HubError(
            f"{TITLE} lists a file of {ref} with a malformed digest.", "Check HF_ENDPOINT."
        )
    return listed_file(path, size, url, sha256=sha256, git_sha1=git_sha1)


def _headers() -> dict[str, str]:
    headers = {"User-Agent": "qwenkit"}
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or _token_file()
    token = (token or "").strip()
    if token:
        if not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
            raise HubError(
                "HF_TOKEN holds a space or a character that no token has.", "Set it again."
            )
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _token_file() -> str | None:
    """The token that `hf auth login` left."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    path = os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    try:
        return Path(os.path.expandvars(os.path.expanduser(path))).read_text(encoding="ascii")
    except (OSError, UnicodeError):
        return None


@contextlib.contextmanager
def _explained(ref: ModelRef) -> Iterator[None]:
    """Say what the hub's status codes mean."""
    try:
        yield
    except StatusError as error:
        page = f"{endpoint()}/{ref.repo}"
        if error.error_code == "GatedRepo" or error.code == 403:
            raise HubError(
                f"{ref.repo} is gated on {TITLE}.", f"Accept its terms at {page} and set HF_TOKEN."
            ) from error
        if error.error_code == "RevisionNotFound":
            raise ModelNotFoundError(
                f"{ref.repo} has no revision {ref.revision or 'main'!r} on {TITLE}.", f"See {page}."
            ) from error
        if error.code == 404 and error.error_code == "EntryNotFound":
            raise HubError(
                f"A file of {ref} is listed but absent on {TITLE}.", "Try again later."
            ) from error
        if error.code == 401 and "credentials" in (error.headers.get("X-Error-Message") or ""):
            raise HubError(
                f"{TITLE} rejects the token.", "Set HF_TOKEN anew, or unset it."
            ) from error
        if error.error_code == "RepoNotFound" or error.code in (401, 404):
            # The hub hides private models from strangers behind 401, and says the same of names
            # that do not exist.
            raise ModelNotFoundError(
                f"{TITLE} has no model {ref.repo}, or it is private.",
                "Check the name, or set HF_TOKEN.",
            ) from error
        raise
