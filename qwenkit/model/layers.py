"""The parts of a block: norm, attention, dense MLP. Parameters are spelled as in the published
files.

Legend: N tokens, H/K query/key-value heads, D head dim, C hidden, F ffn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.model.batch import Batch
from qwenkit.model.linear import Linear
from qwenkit.model.lora import LayerParts, adapted


class RMSNorm(nn.Module):
    """x (N, C) → (N, C)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie 2023, arXiv 2305.13245) with biases on q, k and v."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c, d = config.hidden_size, config.head_dim
        self.layer, self.head_dim, self.window = layer, d, config.window(layer)
        self.scale = d**-0.5
        self.q_proj = Linear(c, config.num_attention_heads * d, bias=True)
        self.k_proj = Linear(c, config.num_key_value_heads * d, bias=True)
        self.v_proj = Linear(c, config.num_key_value_heads * d, bias=True)
        self.o_proj = Linear(config.num_attention_heads * d, c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        parts, heads = batch.parts(self.layer), (len(x), -1, self.head_dim)
        q = adapted(self.q_proj, x, "q_proj", parts).view(heads)  # (N, H, D)
        k = adapted(self.k_proj, x, "k_proj", parts).view(heads)  # (N, K, D)
        v = adapted(self.v_proj, x, "v_proj", parts).view(heads)
        q, k = ops.rope(q, cos, sin), ops.rope(k, cos, sin)
        kv = batch.kv
        if kv is None:
            out = ops.attention(q, k, v, batch.cu_seqlens, self.scale, self.window)
        else:
            k_cache, v_cache = kv.k[self.layer], kv.v[self.layer]
            ops.store_kv(k, v, k_cache, v_cache, kv.slots)
            where = (kv.block_tables, kv.context_lens, batch.cu_seqlens)
            out = ops.paged_attention(q, k_cache, v_cache, *where, self.scale, self.window)
        return adapted(self.o_proj, out.flatten(1), "o_proj", parts)  # (N, C)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): x (N, C) → (N, C)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor, parts: LayerParts = ()) -> Tensor:
        gate = adapted(self.gate_proj, x, "gate_proj", parts)
        up = adapted(self.up_proj, x, "up_proj", parts)
        return adapted(self.down_proj, ops.swiglu(gate, up), "down_proj", parts)
