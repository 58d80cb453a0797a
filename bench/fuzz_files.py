"""Hostile files: `python bench/fuzz_files.py [--count 200000] [--seed N]`, or `make bench-fuzz`.

Valid GGUF and safetensors files are changed where it hurts (counts, lengths, types, dimensions,
offsets set to extreme values; bytes flipped; pieces cut, doubled, moved; the end cut off) and read
as headers; a GGUF header that is accepted goes on to configuration and tokenizer. Every input must
be read or refused with a QwenkitError, within two seconds of CPU time (a machine may be busy) and
64 MiB of memory (on Linux: the process may get no more). The seed is printed; an input that breaks
the rule stays beside.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.errors import QwenkitError
from qwenkit.io.gguf_config import config_of
from qwenkit.io.gguf_header import gguf_header_of
from qwenkit.io.header import header_of
from qwenkit.prompt.tokenizer_files import byte_alphabet
from qwenkit.prompt.tokenizer_gguf import spec_of_gguf

SECONDS = 2.0
EXTRA_BYTES = 64 << 20
EXTREME = (
    0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 33, 64, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 31) + 1,
    (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip


@dataclass
class Found:
    """How many inputs were read and how many refused; the slowest in seconds of CPU time."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0


@dataclass(frozen=True)
class Seed:
    """A valid file, and where its numbers stand: (offset, bytes)."""

    data: bytes
    numbers: tuple[tuple[int, int], ...]


class _Writer:
    """Builds a file and remembers where its numbers are."""

    def __init__(self) -> None:
        self.data = b""
        self.numbers: list[tuple[int, int]] = []

    def number(self, layout: str, value: float) -> None:
        raw = struct.pack("<" + layout, value)
        self.numbers.append((len(self.data), len(raw)))
        self.data += raw

    def text(self, value: str) -> None:
        self.number("Q", len(value.encode()))
        self.data += value.encode()

    def pad(self, alignment: int) -> None:
        self.data += bytes(-len(self.data) % alignment)


def seeds_of(kind: str) -> list[Seed]:
    """Valid files of a kind, "gguf" or "safetensors"."""
    return [_gguf(rows) for rows in (300, 262)] if kind == "gguf" else [_safetensors()]


def _gguf(rows: int) -> Seed:
    """A header that makes a one-layer model with a byte tokenizer, and its tensors."""
    tensors = {
        "token_embd.weight": ((32, rows), 8),
        "output_norm.weight": ((32,), 0),
        "blk.0.attn_norm.weight": ((32,), 0),
        "blk.0.attn_q.weight": ((32, 32), 2),
        "blk.0.ffn_down.weight": ((64, 32), 1),
    }
    sizes = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34)}
    tokens = [*byte_alphabet().values(), "ab", "<|im_end|>"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), rows)]
    kinds = [1] * 257 + [3] + [5] * (rows - 258)
    integers = {
        "embedding_length": 32, "feed_forward_length": 64, "block_count": 1,
        "attention.head_count": 2, "attention.head_count_kv": 1, "context_length": 64,
    }  # fmt: skip
    writer = _Writer()
    writer.data = b"GGUF"
    writer.number("I", 3)
    writer.number("Q", len(tensors))
    writer.number("Q", len(integers) + 9)
    texts = {"general.architecture": "qwen2"}
    texts |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}
    for key, words in texts.items():
        writer.text(key)
        writer.number("I", 8)
        writer.text(words)
    writer.text("general.alignment")
    writer.number("I", 4)
    writer.number("I", 32)
    for key, value in integers.items():
        writer.text(f"qwen2.{key}")
        writer.number("I", 4)
        writer.number("I", value)
    writer.text("qwen2.attention.layer_norm_rms_epsilon")
    writer.number("I", 6)
    writer.number("f", 1e-6)
    for key, strings in {"tokens": tokens, "merges": ["a b"]}.items():
        writer.text(f"tokenizer.ggml.{key}")
        writer.number("I", 9)
        writer.number("I", 8)
        writer.number("Q", len(strings))
        for each in strings:
            writer.text(each)
    writer.text("tokenizer.ggml.token_type")
    writer.number("I", 9)
    writer.number("I", 5)
    writer.number("Q", len(kinds))
    writer.data += struct.pack(f"<{len(kinds)}i", *kinds)
    writer.text("tokenizer.ggml.eos_token_id")
    writer.number("I", 4)
    writer.number("I", 257)
    offset = 0
    for name, (dims, kind_of) in tensors.items():
        writer.text(name)
        writer.number("I", len(dims))
        count = 1
        for size in dims:
            writer.number("Q", size)
            count *= size
        writer.number("I", kind_of)
        writer.number("Q", offset)
        block, width = sizes[kind_of]
        offset += -(-(count // block * width) // 32) * 32
    writer.pad(32)
    return Seed(writer.data + bytes(offset), tuple(writer.numbers))


def _safetensors() -> Seed:
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},'
        b'"b":{"dtype":"BF16","shape":[16],"data_offsets":[32,64]},'
        b'"c":{"dtype":"I64","shape":[],"data_offsets":[64,72]}}'
    )
    return Seed(struct.pack("<Q", len(header)) + header + bytes(72), ((0, 8),))


def mutate(seed: Seed, rng: random.Random) -> bytes:
    """One to four changes to a valid file."""
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 40))
        way = rng.randrange(9)
        if way < 4:  # a number of the format
            where, width = rng.choice(seed.numbers)
            value = rng.choice(EXTREME) if way < 3 else rng.getrandbits(8 * width)
            data[where : where + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        elif way == 4:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 5:
            data[at : at + length] = rng.randbytes(length)
        elif way == 6:
            del data[at : at + length]
        elif way == 7:
            where = rng.randrange(len(data))
            data[at:at] = data[where : where + length]
        else:
            del data[at:]
    return bytes(data)


def _read_gguf(fd: int, size: int) -> None:
    header = gguf_header_of(fd, size, "input")
    config_of(header.metadata, header.tensors, "input")
    spec_of_gguf(header.metadata, Path("input"))


def _read_safetensors(fd: int, size: int) -> None:
    header_of(fd, size, "input")


READERS: dict[str, Callable[[int, int], None]] = {
    "gguf": _read_gguf,
    "safetensors": _read_safetensors,
}


def sweep(kind: str, seeds: list[Seed], count: int, *, seed: int, folder: Path) -> Found:
    """Read `count` mutated files of a kind.

    Errors: whatever a reader raises that is no QwenkitError, with the input left in `folder`;
    AssertionError for one that took too long.
    """
    rng, found, read = random.Random(seed), Found(), READERS[kind]
    work = folder / f"fuzz.{kind}"
    fd = os.open(work, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(count):
            data = mutate(rng.choice(seeds), rng)
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            start = time.process_time()
            try:
                read(fd, len(data))
                found.read += 1
            except QwenkitError:
                found.refused += 1
            spent = time.process_time() - start
            found.slowest = max(found.slowest, spent)
            assert spent < SECONDS, f"{work}: {spent:.1f} s"
        work.unlink()  # stays where an input broke the rule
    finally:
        os.close(fd)
    return found


def limit_memory(extra: int) -> None:
    """Let the process map `extra` bytes more than it has: then a MemoryError ends it."""
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200_000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}, {options.count} inputs of each kind", flush=True)
    limit_memory(EXTRA_BYTES)
    for kind in READERS:
        start = time.process_time()
        found = sweep(kind, seeds_of(kind), options.count, seed=seed, folder=Path.cwd())
        print(
            f"{kind}: {found.read} read, {found.refused} refused, 0 broke the rule; slowest "
            f"{found.slowest * 1000:.0f} ms, {time.process_time() - start:.0f} s of CPU time",
            flush=True,
        )


if __name__ == "__main__":
    main()
