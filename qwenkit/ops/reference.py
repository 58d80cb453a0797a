"""Every op in plain torch: slow, obvious, differentiable; the oracle that kernels are held against.

Legend: N tokens, S sequences, H/K query/key-value heads, D head dim, C hidden, F ffn, V vocab,
B blocks of T slots in the paged cache. Contracts stand in `qwenkit.ops`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenkit.ops.formats import Packed, dequantize


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def qlinear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, dequantize(packed).to(x.dtype), bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)  # (N, 1, D/2)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None
) -> Tensor:
    bounds = cu_seqlens.tolist()
    out = [
        _attend(q[start:end], k[start:end], v[start:end], scale, window)
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(out)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    bounds = cu_seqlens.tolist()
    spans = list(zip(bounds, bounds[1:], strict=False))
    if bounds[-1] == len(spans):  # one query a sequence: decode, all sequences at once
        return _decode(q, k_cache, v_cache, block_tables, context_lens, scale, window)
    out = torch.empty_like(q)
    single = [s for s, (start, end) in enumerate(spans) if end - start == 1]
    if single:  # the decoding sequences of a mixed batch, at once too
        rows, tables, lens = cu_seqlens[single].long(), block_tables[single], context_lens[single]
        out[rows] = _decode(q[rows], k_cache, v_cache, tables, lens, scale, window)
    for s, context in enumerate(context_lens.tolist()):
        start, end = spans[s]
        if end - start != 1:
            blocks = block_tables[s, : -(-context // k_cache.shape[1])].long()
            k = unpack_rows(k_cache[blocks].flatten(0, 1)[:context])  # (context, K, D)
            v = unpack_rows(v_cache[blocks].flatten(0, 1)[:context])
            out[start:end] = _attend(q[start:end], k, v, scale, window)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of the last len(q) positions of one sequence over all its len(k) keys."""
    queries, keys = len(q), len(k)
    mask = None
    if window is not None or queries != keys:
        mask = _causal_mask(queries, keys, window, q.device)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],  # (1, H, queries, D)
        k.transpose(0, 1)[None].to(q.dtype),
        v.transpose(0, 1)[None].to(q.dtype),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def _causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) booleans, True where a query may look."""
    at = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    mask = key <= at
    return mask if window is None else mask & (key > at - window)


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    size, shape = k_cache.shape[1], k_cache.shape[2:]
    longest = int(context_lens.max())
    blocks = block_tables[:, : -(-longest // size), None].long()
    slots = (blocks * size + torch.arange(size, device=q.device)).flatten(1)[:, :longest]
    key = torch.arange(longest, device=q.device)[None, :]
    end = context_lens[:, None].long()
    mask = key < end
    # What nobody wrote may hold anything, and nan survives a mask: read the sequence's first
    # token there instead.
    slots = torch.where(mask, slots, slots[:, :1]).flatten()

    def read(cache: Tensor) -> Tensor:
        rows = cache.view(-1, shape.numel()).index_select(0, slots).view(-1, longest, *shape)
        return unpack_rows(rows).to(q.dtype)  # (S, longest, K, D)

    k, v = read(k_cache), read(v_cache)
    if window is not None:
        mask = mask & (key >= end - window)
    out = F.scaled_dot_product_attention(
        q[:, :, None, :],  # (S, H, 1, D)
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask[:, None, None, :],
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[2],
    )
    return out[:, :, 0, :]


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    for new, cache in ((k, k_cache), (v, v_cache)):
        rows = pack_rows(new) if cache.dtype == torch.int8 else new.to(cache.dtype)
        cache.view(-1, *cache.shape[2:])[slots] = rows


def cache_width(head_dim: int, dtype: torch.dtype) -> int:
    """Entries of a cache of this dtype for one token and head."""
    return head_dim + 4 if dtype == torch.int8 else head_dim


def pack_rows(x: Tensor) -> Tensor:
    """x (…, D) → (…, D + 4) int8: codes from -127 to 127 and the four bytes of their float32
    scale, a 127th of the largest magnitude.
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    codes = (x / torch.where(scale > 0, scale, 1.0)).round().to(torch.int8)
    return torch.cat((codes, scale.contiguous().view(torch.int8)), dim=-1)


def unpack_rows(rows: Tensor) -> Tensor:
    """What `pack_rows` was given, rounded, in float32; rows of another dtype are as they are."""
    if rows.dtype != torch.int8:
        return rows
    return rows[..., :-4].float() * rows[..., -4:].contiguous().view(torch.float32)


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    chosen = logits.argmax(-1)
    warm = temperature > 0
    # One pass for each top_k in use: a row's token depends on its own numbers alone, even among
    # equal logits.
    for limit in sorted(set(top_k[warm].tolist())):
        rows = (warm & (top_k == limit)).nonzero()[:, 0]
        filters = (x[rows, None] for x in (temperature, top_p, min_p, uniform))
        chosen[rows] = _draw(logits[rows], limit, *filters)
    return chosen


def _draw(
    logits: Tensor, limit: int, temperature: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> Tensor:
    """Rows that share a top_k: the filters, then the inverse of the cumulative sum."""
    if 0 < limit < logits.shape[-1]:
        ranked, order = logits.topk(limit, dim=-1)  # sixty times faster than sorting the vocabulary
    else:
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = ((ranked - ranked[:, :1]) / temperature).softmax(-1)  # falling along each row
    before = probs.cumsum(-1) - probs
    keep = (before < top_p) & (probs >= min_p * probs[:, :1])
    keep[:, 0] = True
    cumulative = probs.masked_fill(~keep, 0).cumsum(-1)
    choice = (cumulative <= uniform * cumulative[:, -1:]).sum(-1)
    choice = torch.minimum(choice, keep.sum(-1) - 1)
    return order.gather(-1, choice[:, None])[:, 0]
