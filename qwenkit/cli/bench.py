"""`qwenkit bench decode|prefill|batch`: one measurement of a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwenkit.cli.load import check_device, find
from qwenkit.cli.output import hint, print_json, status
from qwenkit.options import BatchOptions, BenchOptions, DecodeOptions, PrefillOptions
from qwenkit.utils import human_bytes

if TYPE_CHECKING:
    from qwenkit.engine import Engine


def decode(options: DecodeOptions) -> int:
    """One sequence, token by token."""
    return _decode(options, 1, options.context_tokens)


def batch(options: BatchOptions) -> int:
    """Many sequences, a token of each in a step."""
    return _decode(options, options.sequences, options.context_tokens)


def _decode(options: BenchOptions, sequences: int, context: int) -> int:
    from qwenkit.eval import speed

    engine = _load(options, sequences, context)
    with status("measuring"):
        measured = speed.decode(
            engine, sequences=sequences, context=context, seconds=options.seconds
        )
        found = speed.record(engine, options.verb, measured)
    each = f" ({sequences} at once)" if sequences > 1 else ""
    return _say(
        options,
        {**found, "sequences": sequences, "context_tokens": context},
        f"{measured.tokens_per_second:.1f} tokens/s{each}, {measured.seconds * 1e3:.2f} ms a step, "
        f"{human_bytes(found['weight_bytes'])} of weights a step: "
        f"{found['bandwidth_share']:.2f} of the read bandwidth of {found['read_rate'] / 1e9:.1f} "
        "GB/s",
    )


def prefill(options: PrefillOptions) -> int:
    """A prompt, up to the first token of the answer."""
    from qwenkit.eval import speed

    engine = _load(options, 1, options.prompt_tokens)
    with status("measuring"):
        measured = speed.prefill(engine, tokens=options.prompt_tokens, seconds=options.seconds)
        found = speed.record(engine, options.verb, measured)
    return _say(
        options,
        {**found, "prompt_tokens": options.prompt_tokens},
        f"{measured.tokens_per_second:.1f} tokens/s, {measured.seconds * 1e3:.0f} ms for "
        f"{options.prompt_tokens} tokens, {found['gflops']:.0f} GFLOP/s",
    )


def _load(options: BenchOptions, sequences: int, longest: int) -> Engine:
    path = find(options)
    import torch

    from qwenkit.eval.speed import load_engine

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = check_device(options.device) or ("cuda" if torch.cuda.is_available() else "cpu")
    with status(f"loading {options.model}"):
        return load_engine(
            path,
            dtype=options.dtype,
            device=device,
            quantize=options.quantize,
            sequences=sequences,
            longest=longest,
        )


def _say(options: BenchOptions, found: dict[str, Any], line: str) -> int:
    found = {"model": options.model, "quantize": options.quantize, **found}
    if options.as_json:
        print_json(found)
        return 0
    peak = found["peak_bytes"]
    print(f"{line}; peak memory {human_bytes(peak) if peak else 'unknown'}")
    hint("make bench for the table of all formats")
    return 0
