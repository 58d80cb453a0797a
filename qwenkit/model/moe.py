"""The sparse MLP of Qwen2-MoE: top-k routed experts plus one shared expert behind a sigmoid gate.

The router's softmax is float32 over all experts; the chosen weights are renormalised only where the
config says so (norm_topk_prob, false for 57B-A14B). Legend: N tokens, C hidden, E experts, k
experts per token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenkit.config import ModelConfig
from qwenkit.model.layers import MLP
from qwenkit.model.linear import Linear
from qwenkit.model.lora import LayerParts


class SparseMLP(nn.Module):
    """x (N, C) → Σ over the top k of weight · expert(x) + sigmoid(gate(x)) · shared expert(x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.hidden_size
        self.top_k, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = Linear(c, config.num_experts)
        self.experts = nn.ModuleList(
            MLP(c, config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        self.shared_expert = MLP(c, config.shared_expert_intermediate_size)
        self.shared_expert_gate = Linear(c, 1)

    def forward(self, x: Tensor, parts: LayerParts = ()) -> Tensor:
        """`parts` have nothing to say: no adapter reaches in here."""
        weights, chosen = self.gate(x).softmax(-1, dtype=torch.float32).topk(self.top_k)  # (N, k)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        # The sigmoid as a softmax against zero: in its last bit, a column's sigmoid depends on the
        # number of rows.
        gate = F.pad(self.shared_expert_gate(x), (0, 1)).softmax(-1)[:, :1]
        out: Tensor = gate * self.shared_expert(x)
        for index in chosen.unique().tolist():
            rows, which = (chosen == index).nonzero(as_tuple=True)
            part = self.experts[index](x[rows]) * weights[rows, which, None].to(x.dtype)
            out = out.index_add(0, rows, part.to(out.dtype))
        return out
