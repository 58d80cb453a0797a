"""Attention of many short sequences at once, with a backward: what packed training spends its time
in.

Sequences of similar length are padded at their end and multiplied as one batch. Causality makes
that exact without a padding mask: a key beyond a sequence's end is seen only by queries beyond it,
and those are thrown away. The probabilities are computed again in the backward, so memory stays
linear in N. Legend: N tokens, H/K query/key-value heads, G = H/K, D head dim, b sequences of padded
length L.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

STEP = 32
"""Lengths are rounded up to a multiple of this; a group shares one padded length."""


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """q (N, H, D), k and v (N, K, D) → (N, H, D); causal within each sequence."""
    out: Tensor = _Attention.apply(q, k, v, groups(cu_seqlens), scale)  # type: ignore[no-untyped-call]
    return out


def groups(cu_seqlens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each padded length: token index (b, L), clamped to the last one, and validity (b, L)."""
    bounds = cu_seqlens.long().cpu()
    lengths = bounds[1:] - bounds[:-1]
    padded = (lengths + STEP - 1) // STEP * STEP
    out = []
    for length in sorted(set(padded.tolist())):
        if length == 0:
            continue
        members = padded == length
        offset = torch.arange(length)
        index = bounds[:-1][members][:, None] + offset
        valid = offset < lengths[members][:, None]
        index = index.clamp(max=int(bounds[-1]) - 1)
        out.append((index.to(cu_seqlens.device), valid.to(cu_seqlens.device)))
    return out


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x (N, H, D), index (b, L) → (b, H, L, D)."""
    return x[index].transpose(1, 2).contiguous()


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q (b, H, L, D), k (b, K, L, D) → (b, K, G·L, L): the query heads of one group are stacked."""
    b, kv, length, d = k.shape
    heads = q.shape[1]
    bias = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    rows = q.reshape(b * kv, -1, d)
    keys = k.reshape(b * kv, length, d).transpose(1, 2)
    scores = torch.baddbmm(bias.repeat(heads // kv, 1), rows, keys, alpha=scale)
    return scores.softmax(-1).view(b, kv, -1, length)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        parts: list[tuple[Tensor, Tensor]],
        scale: float,
    ) -> Tensor:
        out = torch.empty_like(q)
        for index, valid in parts:
            qs, ks, vs = _gather(q, index), _gather(k, index), _gather(v, index)
            heads = (_probabilities(qs, ks, scale) @ vs).view_as(qs)  # (b, H, L, D)
            out[index[valid]] = heads.transpose(1, 2)[valid]
        ctx.save_for_backward(q, k, v, out)
        ctx.parts, ctx.scale = parts, scale  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for index, valid in ctx.parts:  # type: ignore[attr-defined]
            qs, ks, vs = _gather(q, index), _gather(k, index), _gather(v, index)
            live = valid[:, :, None, None].to(grad.dtype)
            go = (
                (grad[index] * live).transpose(1, 2).reshape(len(index), k.shape[1], -1, q.shape[2])
            )
            os = _gather(out, index).view_as(go)
            p = _probabilities(qs, ks, scale)  # (b, K, G·L, L)
            ds = go @ vs.transpose(-1, -2)
            ds = ds.sub_((go * os).sum(-1, keepdim=True)).mul_(p).mul_(scale)
            rows = qs.view_as(go)
            target = index[valid]
            dq[target] = (ds @ ks).view_as(qs).transpose(1, 2)[valid]
            dk[target] = (ds.transpose(-1, -2) @ rows).transpose(1, 2)[valid]
            dv[target] = (p.transpose(-1, -2) @ go).transpose(1, 2)[valid]
        return dq, dk, dv, None, None
