"""What may be done to a loaded model before it answers, and leaves what it computes as it is.

`prepare(model)` puts packed weights in the order of the device's kernels, copies those that still
lie in a mapped file, and fuses each decoder layer into one kernel. Weights must not change
afterwards; a model in training is left alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from qwenkit import ops
from qwenkit.model.layers import MLP
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear, prepack
from qwenkit.model.qwen import Block, Qwen
from qwenkit.ops import KernelWeight, Packed


def prepare(model: Qwen) -> None:
    """All of the transforms, once after loading."""
    prepack(model)
    unmap(model)
    fuse(model)


def unmap(model: Qwen) -> None:
    """Copy the packed weights whose memory is a mapped file's (no kernel took them): were the file
    cut, a touch of its pages would kill the process.
    """
    copies: dict[int, tuple[Packed, Packed]] = {}  # a tied embedding and head share one
    for module in model.modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)) and isinstance(module.packed, Packed):
            held = module.packed
            if id(held) not in copies:
                copies[id(held)] = (held, _owned(held))
            module.packed = copies[id(held)][1]


def _owned(packed: Packed) -> Packed:
    """A copy, or itself where its memory is its own."""
    if all(tensor.untyped_storage().resizable() for tensor in packed.tensors.values()):
        return packed
    tensors = {name: tensor.clone() for name, tensor in packed.tensors.items()}
    return Packed(packed.format, packed.shape, tensors, packed.group_size)


def fuse(model: Qwen) -> None:
    """Give every layer its fused form, where the kernels of its device have one."""
    for block in model.model.layers:
        assert isinstance(block, Block)
        block.fused = _fused(block)


def _fused(block: Block) -> ops.DecoderLayer | None:
    attention, mlp = block.self_attn, block.mlp
    if not isinstance(mlp, MLP):
        return None
    q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    linears: list[nn.Module] = [q, k, v, o, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    weights: list[KernelWeight | Tensor] = []
    biases: list[Tensor | None] = []
    for linear in linears:
        if isinstance(linear, Linear):
            weights.append(linear.weight.detach())
        elif isinstance(linear, QuantLinear) and isinstance(linear.packed, KernelWeight):
            weights.append(linear.packed)
        else:
            return None
        biases.append(linear.bias)
    d = attention.head_dim
    heads = (q.out_features // d, k.out_features // d, d)
    norms = (block.input_layernorm.weight, block.post_attention_layernorm.weight)
    how = (block.input_layernorm.eps, heads, attention.scale, attention.window)
    return ops.make_layer(weights, biases, norms, *how)
