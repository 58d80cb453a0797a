"""ModelScope: its cache, in the layout of the `modelscope` client, and its HTTP protocol.

    $MODELSCOPE_CACHE/models/ORG--NAME/snapshots/<revision>/<file>   written and read
    $MODELSCOPE_CACHE/[hub/]models/ORG/NAME/<file>   read only: clients up to 1.37; . is ___

The default cache is ~/.cache/modelscope. The listing gives sizes and SHA-256 digests; each file is
verified. A revision is a moving branch, so an update first brings all changed files beside the old
ones as `.incomplete` and then puts them in place at once, config.json last: without it a directory
does not count as a model. The environment is read at each call: MODELSCOPE_CACHE,
MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN, MODELSCOPE_API_TOKEN.

Not covered: the client's login files (they are pickles; set MODELSCOPE_API_TOKEN), parallel ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenkit.errors import HubError, ModelNotFoundError
from qwenkit.io.download import POLICY, check_space, disk_errors, fetch, locked, verified
from qwenkit.io.http import StatusError, get_json
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
from qwenkit.utils import fsync_dir

TITLE = "ModelScope"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def cache_root() -> Path:
    """The cache that the `modelscope` client would use with this environment."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def endpoint() -> str:
    value = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ""
    value = value.strip().rstrip("/") or "https://modelscope.cn"
    return value if value.lower().startswith(("http://", "https://")) else f"https://{value}"


def cached(ref: ModelRef) -> Path | None:
    """A complete copy of a model in the cache, or None. No network."""
    places = [_snapshot(ref)]
    if ref.revision is None:
        places += _former_places(ref)
    return next((place for place in places if is_complete(place)), None)


def scan() -> Iterator[CachedModel]:
    """The complete models in the cache, in both layouts."""
    root = cache_root()
    for snapshot in sorted(root.glob("models/*--*/snapshots/*")):
        org, _, name = snapshot.parent.parent.name.partition("--")
        revision = "" if snapshot.name == "master" else f"@{snapshot.name}"
        with contextlib.suppress(ModelNotFoundError):
            ref = ModelRef.parse(f"{org}/{name}{revision}")
            if is_complete(snapshot):
                size = directory_bytes(snapshot)
                yield CachedModel(str(ref), snapshot, "modelscope", size, snapshot.name)
    for place in sorted([*root.glob("models/*/*"), *root.glob("hub/models/*/*")]):
        name = place.name.replace("___", ".")
        with contextlib.suppress(ModelNotFoundError):
            ref = ModelRef.parse(f"{place.parent.name}/{name}")
            # A later download of the same model stands in for this copy.
            if cached(ref) == place:
                yield CachedModel(ref.repo, place, "modelscope", directory_bytes(place), "master")


def download(ref: ModelRef, progress: Progress | None = None) -> Path:
    """Bring a model into the cache, or up to date, and return its directory.

    Errors: ModelNotFoundError (no such model or revision), UnreachableError (no network), HubError.
    """
    with _explained(ref):
        headers = _headers()
        files = wanted_files(_list(ref, headers), ref.repo)
        snapshot = _snapshot(ref)
        key = f"{ref.repo}@{snapshot.name}".encode()
        lock = cache_root() / ".lock" / f"qwenkit_{hashlib.sha256(key).hexdigest()}.lock"
        with locked(lock):
            changed = [f for f in files if not verified(f, snapshot / f.path)]
            parts = [(f, snapshot / f"{f.path}.incomplete") for f in changed]
            check_space(snapshot, parts, ref.repo)
            for file, part in parts:
                fetch(file, part, headers, progress)
            names = {file.path for file in files}
            if parts or _stale_weights(snapshot, names):
                _put_in_place(snapshot, parts, names)
    return snapshot


def _stale_weights(snapshot: Path, names: set[str]) -> list[Path]:
    """Weight files that the repository no longer has: they would still be taken for the model's."""
    weights = [*snapshot.glob("*.safetensors"), *snapshot.glob("*.safetensors.index.json")]
    return [path for path in weights if path.name not in names]


def _put_in_place(snapshot: Path, parts: list[tuple[RemoteFile, Path]], names: set[str]) -> None:
    """Rename all parts and take stale weights away. config.json leaves first and returns last, so
    that a mixture never counts as a model.
    """
    config = snapshot / "config.json"
    away = snapshot / "config.json.incomplete"
    with disk_errors(snapshot):
        if config.exists() and not away.exists():
            os.replace(config, away)
        config.unlink(missing_ok=True)
        for path in _stale_weights(snapshot, names):
            path.unlink()
        for file, part in parts:
            if file.path != config.name:
                os.replace(part, snapshot / file.path)
        fsync_dir(snapshot)
        if away.exists():
            os.replace(away, config)
        fsync_dir(snapshot)


def _snapshot(ref: ModelRef) -> Path:
    revision = (ref.revision or "master").replace("/", "--")
    return cache_root() / "models" / f"{ref.org}--{ref.name}" / "snapshots" / revision


def _former_places(ref: ModelRef) -> list[Path]:
    safe = ref.name.replace(".", "___")
    return [cache_root() / base / "models" / ref.org / safe for base in ("", "hub")]


def _list(ref: ModelRef, headers: dict[str, str]) -> list[RemoteFile]:
    query = urllib.parse.urlencode({"Revision": ref.revision or "master", "Recursive": "True"})
    answer, _ = get_json(
        f"{endpoint()}/api/v1/models/{ref.repo}/repo/files?{query}", headers, POLICY
    )
    data = answer.get("Data") if isinstance(answer, dict) else None
    entries = data.get("Files") if isinstance(data, dict) else None
    if isinstance(answer, dict) and answer.get("Success") is False:
        raise ModelNotFoundError(
            f"{TITLE} refuses {ref}: {_message(answer)}.", "Check the name and the revision."
        )
    if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
        raise HubError(f"{TITLE} gives no list of files for {ref}.", "Check MODELSCOPE_ENDPOINT.")
    return [_entry(ref, entry) for entry in entries if entry.get("Type") != "tree"]


def _entry(ref: ModelRef, entry: dict[str, Any]) -> RemoteFile:
    path, sha256 = entry.get("Path"), entry.get("Sha256") or None
    query = urllib.parse.urlencode({"Revision": ref.revision or "master", "FilePath": str(path)})
    url = f"{endpoint()}/api/v1/models/{ref.repo}/repo?{query}"
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise HubError(
            f"{TITLE} lists a file of {ref} with a malformed digest.", "Check MODELSCOPE_ENDPOINT."
        )
    if sha256 is None and str(path).endswith(".safetensors"):
        raise HubError(f"{TITLE} lists {path} without a digest.", "Check MODELSCOPE_ENDPOINT.")
    return listed_file(path, entry.get("Size"), url, sha256=sha256)


def _headers() -> dict[str, str]:
    headers = {"User-Agent": "qwenkit"}
    token = (os.environ.get("MODELSCOPE_API_TOKEN") or "").strip()
    if token:
        if not re.fullmatch(r"[\x21-\x3a\x3c-\x7e]{1,4096}", token):
            raise HubError(
                "MODELSCOPE_API_TOKEN holds a character that no token has.", "Set it again."
            )
        headers |= {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    return headers


def _message(answer: dict[str, Any]) -> str:
    return " ".join(str(answer.get("Message") or "no reason given").split())[:200]


@contextlib.contextmanager
def _explained(ref: ModelRef) -> Iterator[None]:
    """Say what the hub's status codes mean."""
    try:
        yield
    except StatusError as error:
        if error.code in (401, 403):
            raise HubError(
                f"{TITLE} does not give {ref.repo} to strangers.",
                f"Accept its terms at {endpoint()}/models/{ref.repo} and set MODELSCOPE_API_TOKEN.",
            ) from error
        if error.code == 404:
            raise ModelNotFoundError(
                f"{TITLE} has no model {ref}, or it is private.", "Check the name and the revision."
            ) from error
        raise
