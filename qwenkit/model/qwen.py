"""The one model definition: Qwen2, Qwen2.5, Coder, Math and the MoE, for training, scoring and
serving alike.

`Qwen(config)` takes a ragged `Batch` and returns logits. With `batch.kv` it reads and writes a
paged cache, without it attends within each sequence; packed training, prefill, decode and chunked
prefill are this same forward. The loss, sampling and masking of unused vocabulary rows are
elsewhere. The vision tower is not part of this release. Legend: N tokens, M selected rows, C
hidden, V vocab rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.model.batch import Batch
from qwenkit.model.layers import MLP, Attention, RMSNorm
from qwenkit.model.linear import Linear
from qwenkit.model.moe import SparseMLP
from qwenkit.model.rope import Rope


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)).

    `fused` is the same in one kernel, which does the work where every layer has one, there is a
    cache and no adapter; it is made by `transforms.prepare` for weights that no longer change.
    """

    fused: ops.DecoderLayer | None = None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        sparse = config.is_sparse(layer)
        self.mlp = SparseMLP(config) if sparse else MLP(c, config.intermediate_size)
        self.input_layernorm = RMSNorm(c, eps)
        self.post_attention_layernorm = RMSNorm(c, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        """x (N, C) → (N, C)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, batch)
        parts = batch.parts(self.self_attn.layer)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x), parts)
        return out  # (N, C)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Block:
        self.fused = None  # the weights move
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Decoder(nn.Module):
    """Embedding, blocks and final norm: what the published files call `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen(nn.Module):
    """A decoder with its head. `lm_head` is absent where the config ties it to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size)
        self.rope = Rope(config)

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Logits (M, V) float32 of the given rows of the batch, (N, V) of all without `rows`."""
        x = self.hidden(batch)
        return self.logits(x if rows is None else x[rows])

    def hidden(self, batch: Batch) -> Tensor:
        """The final norm's output, (N, C)."""
        cos, sin = self.rope(batch.positions, batch.scaled)
        x = self.model.embed_tokens(batch.input_ids)
        kv, fused = batch.kv, self.fused
        if fused and kv is not None and not batch.adapters and not torch.is_grad_enabled():
            where = (kv.slots, kv.block_tables, kv.context_lens, batch.cu_seqlens)
            caches = list(zip(kv.k, kv.v, strict=True))
            x = ops.run_layers(fused, x.contiguous(), (cos, sin), caches, *where)
        else:
            for layer in self.model.layers:
                x = layer(x, cos, sin, batch)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, x: Tensor) -> Tensor:
        """x (M, C) → (M, V) float32."""
        head = self.lm_head
        if head is None:
            return ops.head(x, self.model.embed_tokens.weight)
        if isinstance(head, Linear):
            return ops.head(x, head.weight)
        out: Tensor = head(x.float())
        return out.float()

    @property
    def fused(self) -> list[ops.DecoderLayer]:
        """The layers as kernels; empty unless every layer has one."""
        found = [layer.fused for layer in self.model.layers if isinstance(layer, Block)]
        return [layer for layer in found if layer is not None] if None not in found else []

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype
