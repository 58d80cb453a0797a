"""What models are called and which of a repository's files are wanted; plain values, no network.

`org/name` or `org/name@revision` names a model on a hub. Names are checked before anything is built
from them, so that no name can become a path outside the caches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.errors import FormatError, HubError, ModelNotFoundError
from qwenkit.io.header import shown
from qwenkit.io.index import check_names, find_weights, name_fault

Progress = Callable[[str, int, int], None]
"""Called as `progress(file, bytes_done, bytes_total)` while a file arrives, from the calling
thread.
"""

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/+-]{0,126}[A-Za-z0-9_+-])?")
_WANTED_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")
_WANTED_NAMES = ("README.md", "LICENSE", "LICENSE.md")
_UNWANTED = (".bin.index.json",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class ModelRef:
    """A model on a hub. `revision` is a branch, tag or commit; None is the hub's default branch."""

    org: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `org/name[@revision]`. Errors: ModelNotFoundError for anything else; no file is
        touched.
        """
        if len(text) > 400:
            raise ModelNotFoundError(
                f"A model name of {len(text)} characters cannot exist.",
                "Write org/name or org/name@revision.",
            )
        repo, at, revision = text.partition("@")
        org, slash, name = repo.partition("/")
        fault = not slash or any(
            not _PART.fullmatch(p) or "--" in p or ".." in p for p in (org, name)
        )
        if at and not (
            _REVISION.fullmatch(revision) and ".." not in revision and "//" not in revision
        ):
            fault = True
        if fault:
            raise ModelNotFoundError(
                f"{shown(text)} is no model name.", "Write org/name or org/name@revision."
            )
        return cls(org, name, revision or None)

    @property
    def repo(self) -> str:
        return f"{self.org}/{self.name}"

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class CachedModel:
    """A complete model on this machine: `resolve(ref)` gives `path` without a network."""

    ref: str
    path: Path
    source: str
    """embedded, huggingface or modelscope."""
    size_bytes: int
    revision: str


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository. `sha256` is of the content, `git_sha1` git's blob id; either may be
    missing.
    """

    path: str
    url: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


def wanted_files(files: Iterable[RemoteFile], repo: str) -> list[RemoteFile]:
    """The files to fetch, small ones first: configuration, tokenizer, template, safetensors,
    licence and card.

    Files in subdirectories and other kinds are passed over. Errors: HubError when there are no
    safetensors, or when a name is unfit to be a file here.
    """
    listed = list(files)
    wanted = [f for f in listed if "/" not in f.path and _is_wanted(f.path)]
    try:
        check_names((f.path for f in wanted), repo, suffix="")
    except FormatError as error:
        raise HubError(error.message, error.remedy) from error
    weights = [f for f in wanted if f.path.endswith(".safetensors")]
    if not weights:
        pickles = any(f.path.endswith(_PICKLES) for f in listed)
        kind = (
            "only pickled weights (.bin), which can run code and are never opened"
            if pickles
            else "no weights"
        )
        raise HubError(
            f"{repo} has {kind}.", "Choose a model or a revision with .safetensors files."
        )
    return sorted(wanted, key=lambda f: (f.path.endswith(".safetensors"), f.path))


def _is_wanted(name: str) -> bool:
    if name.startswith(".") or name.endswith(_UNWANTED):
        return False
    return name in _WANTED_NAMES or name.endswith(_WANTED_SUFFIXES)


def is_complete(directory: Path) -> bool:
    """Whether a directory holds configuration, tokenizer and every weight file, so that a model can
    be loaded.
    """

    def there(name: str) -> bool:
        return (directory / name).is_file()

    try:
        tokenizer = there("tokenizer.json") or (there("vocab.json") and there("merges.txt"))
        if not (there("config.json") and tokenizer):
            return False
        return all(path.is_file() for path in find_weights(directory).shards.values())
    except (OSError, FormatError):
        return False


def directory_bytes(directory: Path) -> int:
    """Bytes of the files directly in a directory, links followed."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def listed_file(path: object, size: object, url: str, **digests: str | None) -> RemoteFile:
    """A file as a hub's listing describes it, checked. Errors: HubError when it is malformed."""
    plain = isinstance(path, str) and all(name_fault(part) is None for part in path.split("/"))
    if not (plain and isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        raise HubError(
            f"The hub lists an impossible file: {shown(path)}, {shown(size)} bytes.",
            "Do not use it.",
        )
    assert isinstance(path, str) and isinstance(size, int)
    return RemoteFile(path, url, size, **digests)
