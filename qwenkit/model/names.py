"""Names of GGUF files ↔ names of the model, in one table; safetensors files have the model's own.

llama.cpp's converter keeps the rows of q and k of this family where they are: its permutation is
for rotary pairs that lie side by side, and here they are half a head apart in both. The matrices
of all experts of a layer are one tensor there, (experts, out, in), and one for each here.
"""

from __future__ import annotations

import re

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_exps.weight": "mlp.experts.{}.gate_proj.weight",
    "ffn_up_exps.weight": "mlp.experts.{}.up_proj.weight",
    "ffn_down_exps.weight": "mlp.experts.{}.down_proj.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)", re.DOTALL)


def from_gguf(name: str) -> str | None:
    """The model's name of a GGUF tensor, None if it has none.

    The tensor of all experts has `{}` where the expert's number belongs.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _WHOLE.get(name)
    inner = _LAYER.get(match[2])
    return None if inner is None else f"model.layers.{match[1]}.{inner}"
