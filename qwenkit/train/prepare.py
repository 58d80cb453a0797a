"""What pretraining and fine-tuning share: data from options, the fingerprint of a run, the finished
model's folder.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qwenkit.tasks
from qwenkit import ops
from qwenkit.errors import DataError, OptionError, TokenizerError, TrainError
from qwenkit.model.load import save_model
from qwenkit.model.qwen import Qwen
from qwenkit.options import write_resolved
from qwenkit.options.train import PretrainOptions, SftOptions, TrainOptions
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train import checkpoint, sources, tokenise
from qwenkit.train.data import Loader
from qwenkit.train.loop import Loss, Trainer, train
from qwenkit.train.sources import Source
from qwenkit.train.tokenise import Encoder, Kind, TokenStore
from qwenkit.utils import atomic_write, fsync_dir, human_count, read_json, write_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
)
HARMLESS = {
    "output_dir",
    "data_cache",
    "logging_steps",
    "save_steps",
    "keep_checkpoints",
    "resume",
    "allow_changes",
}
HARMLESS |= {"tensorboard", "eval_steps", "threads", "device", "on_bad_row", "max_bad_steps"}
"""Options that may differ on resuming: they do not decide the weights. Threads and device are
compared as resolved.
"""
PARALLEL_TOKENS = 500_000
_log = logging.getLogger("qwenkit.train")


def run_training(
    model: Qwen,
    tokenizer_dir: Path,
    options: PretrainOptions | SftOptions,
    kind: Kind,
    loss: Loss,
    generation: dict[str, Any],
) -> Path:
    """Data, loop, finished model. Returns `output_dir/model`. Errors: QwenkitError; see
    `loop.train`.
    """
    output = Path(options.output_dir)
    with checkpoint.OutputLock(output):
        store, held_back = split(
            prepare_data(options, tokenizer_dir, kind), options.eval_fraction, options.seed
        )
        device = model.device
        trainer = Trainer(
            model=model,
            loader=Loader(store, options.tokens_per_batch, options.seed, device),
            loss=loss,
            options=options,
            fingerprint=fingerprint(options, store, tokenizer_dir, device),
        )
        if held_back is not None:
            trainer.held_back = Loader(held_back, options.tokens_per_batch, options.seed, device)
        _log.info(
            "%s parameters, %s tokens in %d sequences, %d batches an epoch",
            human_count(sum(p.numel() for p in model.parameters())),
            human_count(len(store.ids)),
            len(store),
            len(trainer.loader.bins(0)),
        )
        write_resolved(options, output)
        torch.manual_seed(options.seed)  # nothing here draws from the global states, a method may
        random.seed(options.seed)
        train(trainer)
        return publish(model, tokenizer_dir, output / "model", generation)


def setup_device(options: TrainOptions) -> torch.device:
    """Threads and device of the run. Errors: OptionError when cuda is asked for and absent."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            "device is cuda, but torch sees no GPU here.", "Set device: cpu, or auto."
        )
    return device


def prepare_data(
    options: PretrainOptions | SftOptions, tokenizer_dir: Path, kind: Kind
) -> TokenStore:
    """All sources as one store, tokenised now or taken from the cache. Errors: DataError,
    OptionError.
    """
    if not options.data:
        raise OptionError(
            "No data given.", "List sources under `data:`, for example `stdlib tokens=1M`."
        )
    parsed = [Source.parse(text) for text in options.data]
    shares = tokenise.budgets(parsed, options.data_tokens)
    jobs = [
        _Job(
            source,
            share,
            str(tokenizer_dir),
            kind,
            options.max_seq_len,
            options.overlong,
            options.seed,
        )
        for source, share in zip(parsed, shares, strict=True)
    ]
    skip = options.on_bad_row == "skip"
    workers = min(options.threads or os.cpu_count() or 1, len(jobs))
    if workers > 1 and sum(share or PARALLEL_TOKENS for share in shares) > PARALLEL_TOKENS:
        with concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn")
        ) as pool:
            waiting = [pool.submit(_cached, job, options.data_cache, skip) for job in jobs]
            stores = [
                _reported(job, future.result()) for job, future in zip(jobs, waiting, strict=True)
            ]
    else:
        stores = [_reported(job, _cached(job, options.data_cache, skip)) for job in jobs]
    return TokenStore.concatenate(stores)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One source to tokenise; small, so that it can go to a worker process."""

    source: Source
    budget: int | None
    tokenizer_dir: str
    kind: Kind
    max_seq_len: int
    overlong: Any
    seed: int


def _cached(job: _Job, cache: str | None, skip: bool) -> TokenStore:
    if cache is None:
        return _tokenise(job, skip)
    file = Path(cache) / f"{_key(job, skip)}.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as arrays:
            counts = json.loads(str(arrays["counts"]))
            return TokenStore(arrays["ids"], arrays["mask"], arrays["offsets"], counts)
    store = _tokenise(job, skip)
    with atomic_write(file) as out:
        counts = np.array(json.dumps(store.counts))
        np.savez(out, ids=store.ids, mask=store.mask, offsets=store.offsets, counts=counts)
    return store


def _tokenise(job: _Job, skip: bool) -> TokenStore:
    tokenizer = Tokenizer.from_dir(job.tokenizer_dir)
    encoder = Encoder(
        tokenizer,
        load_template(job.tokenizer_dir, tokenizer),
        job.kind,
        job.max_seq_len,
        job.overlong,
    )
    return tokenise.tokenise(job.source, job.budget, encoder, skip_bad_rows=skip, seed=job.seed)


def load_template(tokenizer_dir: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template beside a tokenizer; None when there is none (text does not need it)."""
    directory = Path(tokenizer_dir)
    config = directory / "tokenizer_config.json"
    inside = config.is_file() and "chat_template" in read_json(config)
    if not inside and not (directory / "chat_template.jinja").is_file():
        return None
    return ChatTemplate.from_dir(directory, tokenizer)


def _key(job: _Job, skip: bool) -> str:
    """Digest of everything that decides a store: job, tokenizer, the source's files, the code that
    reads them.
    """
    sha = hashlib.sha256(json.dumps([dataclasses.asdict(job), skip], sort_keys=True).encode())
    files = [Path(job.tokenizer_dir) / name for name in TOKENIZER_FILES] + sources.source_files(
        job.source
    )
    files += [Path(module.__file__ or "") for module in (sources, tokenise)]
    if sources.is_endless(job.source):
        files += sorted(Path(qwenkit.tasks.__path__[0]).rglob("*.py"))
    for file in files:
        if file.is_file():
            sha.update(f"{file.name}:{tokenise.file_digest(file)}".encode())
    return sha.hexdigest()[:32]


def _reported(job: _Job, store: TokenStore) -> TokenStore:
    """Say what became of a source: counts always, losses as warnings."""
    counts, tokens = store.counts, len(store.ids)
    told = ", ".join(f"{value} {key}" for key, value in sorted(counts.items()) if value)
    _log.info("%s: %s tokens (%s)", job.source.name, human_count(tokens), told)
    for key in ("dropped", "skipped"):
        if counts.get(key):
            _log.warning("%s: %d rows %s", job.source.name, counts[key], key)
    if job.budget is not None and tokens < job.budget and counts["rows"] != job.source.rows:
        _log.warning(
            "%s ends after %d of the %d tokens asked for", job.source.name, tokens, job.budget
        )
    return store


def split(store: TokenStore, fraction: float, seed: int) -> tuple[TokenStore, TokenStore | None]:
    """(training, held back) sequences; a sequence that occurs in both parts is said aloud.

    Errors: DataError when one of the parts would be empty.
    """
    if fraction == 0.0:
        return store, None
    order = np.random.Generator(np.random.PCG64([seed, 0xE7A1])).permutation(len(store))
    count = max(1, round(fraction * len(store)))
    if count >= len(store):
        raise DataError(
            f"eval_fraction {fraction} leaves nothing to train on.", "Lower it or give more data."
        )
    kept, held = store.select(np.sort(order[count:])), store.select(np.sort(order[:count]))
    known = {kept.ids[a:b].tobytes() for a, b in zip(kept.offsets, kept.offsets[1:], strict=False)}
    both = sum(
        held.ids[a:b].tobytes() in known
        for a, b in zip(held.offsets, held.offsets[1:], strict=False)
    )
    if both:
        _log.warning("%d of the %d held-back sequences are also in the training data", both, count)
    return kept, held


def fingerprint(
    options: PretrainOptions | SftOptions,
    store: TokenStore,
    tokenizer_dir: Path,
    device: torch.device,
) -> dict[str, Any]:
    """What must be equal for a resumed run to end with the same bits."""
    values = {key: value for key, value in options.to_dict().items() if key not in HARMLESS}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        **values,
        "data digest": store.digest(),
        "tokenizer digest": tokenise.file_digest(_tokenizer_file(tokenizer_dir)),
        "torch": torch.__version__,
        "threads in use": torch.get_num_threads(),
        "device in use": name,
        "native bfloat16": ops.native_bfloat16(device),
    }


def _tokenizer_file(directory: Path) -> Path:
    for name in ("tokenizer.json", "vocab.json"):
        if (directory / name).is_file():
            return directory / name
    raise TokenizerError(
        f"{directory} has no tokenizer.json.", "Train one, or give tokenizer: a model's folder."
    )


def publish(model: Qwen, tokenizer_dir: Path, target: Path, generation: dict[str, Any]) -> Path:
    """Write the finished model as a published checkpoint: bf16 weights, config, tokenizer,
    generation settings.

    The folder appears whole; an older one of the same name is replaced. Errors: TrainError (disk
    full, permissions).
    """
    temporary, old = (
        target.with_name(f".tmp-{target.name}"),
        target.with_name(f".old-{target.name}"),
    )
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_model(model, temporary, torch.bfloat16)
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                with atomic_write(temporary / name) as file:
                    file.write((tokenizer_dir / name).read_bytes())
        _set_eos(temporary / "tokenizer_config.json", generation["eos_token_id"], temporary)
        write_json(temporary / "generation_config.json", generation)
        if target.exists():
            os.rename(target, old)
        os.rename(temporary, target)
        fsync_dir(target.parent)
    except OSError as error:
        raise TrainError(
            f"{target} cannot be written: {error.strerror}.", "Free space and run again."
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    return target


def _set_eos(config: Path, eos: int | list[int], directory: Path) -> None:
    """Name the token that ends an answer in tokenizer_config.json, as base and instruct models
    differ there.
    """
    if not config.is_file():
        return
    first = eos[0] if isinstance(eos, list) else eos
    names = {index: token for token, index in Tokenizer.from_dir(directory).special_ids.items()}
    write_json(config, {**read_json(config), "eos_token": names[first]})
