"""What the server keeps on disk: JSON objects and files, in a private folder for each tenant.

    ROOT/lock                           held for as long as the server runs
    ROOT/TENANT/files/file-ID.json      an object (written whole or not at all)
    ROOT/TENANT/files/file-ID           its content
    ROOT/TENANT/batches/batch_ID.json   and batch_ID.journal while it runs

TENANT is a digest of the tenant's name. Without a folder of the operator's there is one that goes
with the server. Ids are of our own making: what a client sends is looked up among them, and is
never a part of a path. Of another tenant's object there is none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from qwenkit.errors import OptionError
from qwenkit.server.errors import ApiError
from qwenkit.utils import fsync_dir, read_json, write_json

Object = dict[str, Any]


class DataFolder:
    """The root. It is made when it is first needed, unless the operator has named one.

    Errors: OptionError when it cannot be used, or another server does.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        if folder is not None:
            _ = self.root

    @cached_property
    def root(self) -> Path:
        """The folder, locked and swept."""
        if self._folder is None:
            path = Path(tempfile.mkdtemp(prefix="qwenkit-serve-"))
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
            return path
        path = Path(self._folder)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            text = f"--data-dir {path} cannot be used: {error.strerror}."
            raise OptionError(text, "Give a folder that you may write to.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            text = f"--data-dir {path} is in use by another server."
            raise OptionError(text, "Give each server a folder of its own.") from error
        weakref.finalize(self, os.close, lock)
        for left in path.glob("*/*/.*.tmp"):
            left.unlink()
        return path

    def folder(self, tenant: str, kind: str) -> Path:
        """Where objects of a tenant are."""
        home = self.root / hashlib.sha256(tenant.encode()).hexdigest()[:32]
        path = home / kind
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(home / "tenant.json", {"tenant": tenant})
        return path

    def tenants(self) -> list[str]:
        """Whoever has a folder."""
        if self._folder is None:
            return []
        return [read_json(path)["tenant"] for path in sorted(self.root.glob("*/tenant.json"))]


class Objects:
    """All objects of one kind, by tenant and id; on disk, and their JSON in memory too."""

    def __init__(self, data: DataFolder, kind: str, noun: str) -> None:
        self._data, self._kind, self._noun = data, kind, noun
        self._known: dict[str, dict[str, Object]] = {}
        self.lock = threading.RLock()  # files are written in threads

    def tenants(self) -> list[str]:
        """Whoever was known before: only where the operator named a folder."""
        return self._data.tenants()

    def all(self, tenant: str) -> dict[str, Object]:
        """id → object, the oldest first, as they are now."""
        with self.lock:
            return dict(self._of(tenant))

    def _of(self, tenant: str) -> dict[str, Object]:
        if tenant not in self._known:
            folder = self._data.folder(tenant, self._kind)
            found = [read_json(path) for path in folder.glob("*.json")]
            found.sort(key=lambda each: (each["created_at"], each["id"]))
            self._known[tenant] = {each["id"]: each for each in found}
        return self._known[tenant]

    def get(self, tenant: str, object_id: str) -> Object:
        """Errors: ApiError 404."""
        with self.lock:
            found = self._of(tenant).get(object_id)
        if found is None:
            raise self._not_found(object_id)
        return found

    def open(self, tenant: str, object_id: str) -> BinaryIO:
        """The content, which can be read to its end even if the object is deleted meanwhile.

        Errors: ApiError 404.
        """
        self.get(tenant, object_id)
        try:
            return self.path(tenant, object_id).open("rb")
        except FileNotFoundError:
            raise self._not_found(object_id) from None

    def _not_found(self, object_id: str) -> ApiError:
        shown = object_id if len(object_id) <= 100 else object_id[:99] + "…"
        return ApiError(404, f"No such {self._noun}: {shown}", param="id", code="not_found")

    def put(self, tenant: str, found: Object, then: Callable[[], None] | None = None) -> None:
        """Write an object, or its newer state. `then` is called in the moment in which it is known,
        under the lock.
        """
        write_json(self.path(tenant, found["id"]).with_suffix(".json"), found)
        with self.lock:
            self._of(tenant)[found["id"]] = found
            if then is not None:
                then()

    def remove(self, tenant: str, object_id: str) -> None:
        """Its JSON first, so that there is never an object without its content."""
        path = self.path(tenant, object_id)
        with self.lock:
            self._of(tenant).pop(object_id, None)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        fsync_dir(path.parent)

    def path(self, tenant: str, object_id: str) -> Path:
        """Where the content of a known object is."""
        return self._data.folder(tenant, self._kind) / object_id
