"""Which files of a directory are the checkpoint: `model.safetensors`, or the shards of its index.
Opens no weights.

A checkpoint may come from anybody, so the names in `model.safetensors.index.json` are not trusted:
each must be a plain file name in the directory itself, no two may be equal after case folding and
Unicode normalisation, and a symbolic link may lead out of the directory only within a Hugging Face
cache, whose snapshots link to its blobs. Directories that hold only pickled weights (`.bin`, `.pt`,
…) are refused without opening one, because unpickling runs whatever they contain.

Works without torch.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.errors import FormatError
from qwenkit.io.header import FETCH_AGAIN, open_regular, read_exactly, shown, strict_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_ADVICE = (
    "Unpickling runs code from the file, so qwenkit never does it: take a model with .safetensors "
    "files, or convert the weights with the `safetensors` package where that code does no harm."
)


@dataclass(frozen=True)
class WeightFiles:
    """`shards` by name; `weight_map` (tensor → shard name) is None for a single file."""

    shards: dict[str, Path]
    weight_map: dict[str, str] | None


def find_weights(directory: str | os.PathLike[str]) -> WeightFiles:
    """The weight files of a checkpoint directory; a single `model.safetensors` goes before an
    index.

    Errors: FormatError when there are none, when they are pickles, when the index is malformed or
    names anything but plain files of this directory, and when shards are absent (all are named).
    """
    directory = Path(directory)
    try:
        present = set(os.listdir(directory))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(
            f"{directory} cannot be listed: {reason}.", "Give a model's directory."
        ) from error
    if WEIGHTS_NAME in present:
        return WeightFiles({WEIGHTS_NAME: _inside(directory, WEIGHTS_NAME)}, None)
    if INDEX_NAME not in present:
        raise _no_weights(directory, present)
    weight_map = _read_weight_map(directory)
    names = sorted(set(weight_map.values()))
    check_names(names, str(directory / INDEX_NAME))
    absent = [name for name in names if name not in present]
    if absent:
        raise FormatError(
            f"{directory} lacks {len(absent)} of {len(names)} shards: {few(absent)}.",
            "Finish it with `qwenkit pull`.",
        )
    return WeightFiles({name: _inside(directory, name) for name in names}, weight_map)


def _read_weight_map(directory: Path) -> dict[str, str]:
    path = _inside(directory, INDEX_NAME)
    with open_regular(path) as (fd, status):
        if status.st_size > MAX_INDEX_BYTES:
            raise FormatError(
                f"{path} has {status.st_size} bytes, too many for an index.", FETCH_AGAIN
            )
        raw = read_exactly(fd, status.st_size, 0, str(path))
    weight_map = strict_json(raw, str(path), floats=True).get("weight_map")
    if not (
        isinstance(weight_map, dict)
        and weight_map
        and all(isinstance(v, str) for v in weight_map.values())
    ):
        raise FormatError(
            f"{path} needs a weight_map from tensor names to file names.", FETCH_AGAIN
        )
    return weight_map


def name_fault(name: str) -> str | None:
    """Why `name` cannot be a plain file name, or None if it can."""
    if not name or name in (".", "..") or len(name.encode("utf-8", "replace")) > 255:
        return "is empty, too long or a directory"
    if any(
        c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name
    ):
        return "holds a path separator, a colon, a wildcard or a control character"
    if name.startswith(("-", "~")) or name != name.strip() or name.endswith("."):
        return "starts or ends with a forbidden character"
    return None


def check_names(names: Iterable[str], where: str, suffix: str = ".safetensors") -> None:
    """Refuse names that are no plain file names with `suffix`, and names that a file system may
    take for the same.
    """
    folded: dict[str, str] = {}
    for name in names:
        fault = name_fault(name)
        if fault is None and not name.endswith(suffix):
            fault = f"does not end with {suffix}"
        if fault is not None:
            raise FormatError(
                f"{where} names the file {shown(name)}, which {fault}.",
                "Do not use this checkpoint.",
            )
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if key in folded:
            raise FormatError(
                f"{where} names both {shown(folded[key])} and {shown(name)}, "
                "which some file systems cannot tell apart.",
                "Do not use this checkpoint.",
            )
        folded[key] = name


def _inside(directory: Path, name: str) -> Path:
    """`directory / name`, if it does not lead out of the directory (or out of the Hugging Face
    cache around it).
    """
    path = directory / name
    if not path.is_symlink():
        return path
    home = directory.resolve()
    repository = home.parent.parent
    if home.parent.name == "snapshots" and repository.name.startswith("models--"):
        home = (
            repository.parent
        )  # snapshots link to the repository's blobs, and those to blobs that repositories share
    # os.path, since Path.resolve raises where links run in a circle; opening says so then
    if not Path(os.path.realpath(path)).is_relative_to(home):
        raise FormatError(
            f"{path} is a link that leaves {home}.", "Copy the file into the directory."
        )
    return path


def _no_weights(directory: Path, present: set[str]) -> FormatError:
    pickles = sorted(name for name in present if name.endswith(_PICKLES))
    shards = sorted(name for name in present if name.endswith(".safetensors"))
    gguf = sorted(name for name in present if name.endswith(".gguf"))
    if shards:
        return FormatError(
            f"{directory} has {few(shards)} but no {INDEX_NAME}.", "Fetch the index too."
        )
    if pickles:
        return FormatError(
            f"{directory} has its weights only as pickle ({few(pickles)}).", _PICKLE_ADVICE
        )
    if gguf:
        return FormatError(
            f"{directory} has its weights only as GGUF ({few(gguf)}).",
            "Give the .gguf file itself.",
        )
    return FormatError(
        f"{directory} has neither {WEIGHTS_NAME} nor {INDEX_NAME}.", "Give a model's directory."
    )


def few(names: list[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
