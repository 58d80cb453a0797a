"""A small model's function in the shape of a large one: what it says is known, what it costs is the
large one's.

    python bench/widen.py tiny-instruct out/wide [--size 0.5B]

The residual stream of the small model lies in the first columns of the large one's and the rest is
zero; heads, feed-forward units and layers beyond its own read and compute as usual, and add
nothing. So the logits are those of the small model up to rounding, while every matrix has the large
shape and is multiplied in full. Needed: as many kv heads, and a head dim, a width and a depth that
are multiples of the small ones or at least as large. Legend: H/K query/kv heads, D head dim,
C hidden.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.cli.dev import published_shape
from qwenkit.config import ModelConfig
from qwenkit.io.hub import resolve
from qwenkit.model.load import init_model, load_model, save_model
from qwenkit.model.qwen import Qwen


def widen(small: Qwen, large: ModelConfig) -> Qwen:
    """A float32 model of `large`'s shape that says what `small` says."""
    own = small.config
    ratio = own.hidden_size / large.hidden_size
    assert own.num_key_value_heads == large.num_key_value_heads
    assert large.head_dim % own.head_dim == 0 and own.tie_word_embeddings
    config = dataclasses.replace(
        large,
        rope_theta=own.rope_theta,
        rms_norm_eps=own.rms_norm_eps * ratio,  # the mean runs over more columns, all of them zero
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
    )
    wide = init_model(config)
    state, weights = wide.state_dict(), small.float().state_dict()
    with torch.no_grad():
        for name, to in state.items():
            if name.endswith("embed_tokens.weight") or "norm" in name:
                to.zero_()
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                to.zero_()  # what the other heads, units and layers have computed ends here
            if name not in weights:
                continue
            value = weights[name] * (ratio**0.5 if "norm" in name else 1.0)
            _place(name, value, to, own, config)
    return wide


def _place(name: str, value: Tensor, to: Tensor, own: ModelConfig, large: ModelConfig) -> None:
    """One tensor of the small model into its place in the large one."""
    kind = name.split(".")[-2]
    if kind in ("q_proj", "k_proj", "v_proj"):
        rows = _head_rows(own, large, kind)
        if kind == "q_proj":  # the product is divided by the root of a larger head dim
            value = value * (large.head_dim / own.head_dim) ** 0.5
        if to.dim() == 1:
            to[rows] = value
        else:
            to[rows, : own.hidden_size] = value
    elif kind == "o_proj":
        to[: own.hidden_size, _head_rows(own, large, "v_proj", queries=True)] = value
    elif to.dim() == 1:
        to[: len(value)] = value
    else:
        to[: len(value), : value.shape[1]] = value


def _head_rows(own: ModelConfig, large: ModelConfig, kind: str, queries: bool = False) -> list[int]:
    """Where the rows of the small projection stand in the large one."""
    query = kind == "q_proj" or queries
    groups = own.num_key_value_heads
    each = own.num_attention_heads // groups if query else 1
    wide = large.num_attention_heads // groups if query else 1
    step = large.head_dim // own.head_dim
    half = own.head_dim // 2
    # Dimension i turns with the frequency theta ** (-2i / D), so it keeps it at i · step.
    places = [i % half * step + i // half * (large.head_dim // 2) for i in range(own.head_dim)]
    return [
        (group * wide + head) * large.head_dim + place
        for group in range(groups)
        for head in range(each)
        for place in places
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the small one: an embedded name or a folder")
    parser.add_argument("folder", type=Path, help="where the large one is written, in bfloat16")
    parser.add_argument("--size", default="0.5B")
    options = parser.parse_args()
    path = resolve(options.model)
    wide = widen(load_model(path, "float32"), published_shape(options.size))
    save_model(wide, options.folder, torch.bfloat16)
    for file in path.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, options.folder)


if __name__ == "__main__":
    main()
