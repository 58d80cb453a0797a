"""Paged attention in Triton: prefill, chunks of it and decoding in one kernel, keys split over
programs when there are few queries (flash-decoding).

A tile holds some queries of one sequence with all the query heads that share a key-value head, so
keys are read once for the group. Softmax is computed while the keys pass (Milakov & Gimelshein
2018, arXiv 1805.02867; Dao 2022, arXiv 2205.14135). No number is read back from the GPU: a tile
finds its sequence in `cu_seqlens` by bisection, so a captured graph stays valid while lengths
change. Legend: N tokens, S sequences, H/K query/key-value heads, G = H/K, D head dim, B blocks of T
slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 16
"""Queries of a tile where a sequence has many."""
_KEYS = 64
_PROGRAMS = 264
_SPLIT_KEYS = 256
"""Keys below which a split does not pay."""


@triton.jit
def _sequence(cu, tile, sequences, QUERIES: tl.constexpr):
    """The last sequence whose first tile is not behind this one."""
    low, high = 0, sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu + middle) // QUERIES + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _slots(table, key, known, kv, kv_heads, T: tl.constexpr):
    """Where the keys of one head stand in the cache, in heads."""
    page = tl.load(table + key // T, mask=known, other=0)
    return (page.to(tl.int64) * T + key % T) * kv_heads + kv


@triton.jit
def _attend(
    q, k_cache, v_cache, tables, lens, cu, out, lse, scale, sequences, tokens, heads, kv_heads,
    width, table_stride,
    T: tl.constexpr, G: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    s = _sequence(cu, tile, sequences, QUERIES)
    start = tl.load(cu + s)
    count = tl.load(cu + s + 1) - start
    first = (tile - start // QUERIES - s) * QUERIES
    if first < count:
        context = tl.load(lens + s)
        row = tl.arange(0, ROWS)
        query = first + row // G
        valid = (row < QUERIES * G) & (query < count)
        position = context - count + query
        d = tl.arange(0, D)
        token = (start + query).to(tl.int64)
        head = kv * G + row % G
        place = (token * heads + head)[:, None] * width + d[None, :]
        loaded = valid[:, None] & (d < width)[None, :]
        queries = tl.load(q + place, mask=loaded, other=0.0)
        end = tl.minimum(context - count + first + QUERIES, context)
        begin = 0
        if WINDOW > 0:
            begin = tl.maximum(context - count + first - WINDOW + 1, 0) // KEYS * KEYS
        share = tl.cdiv(tl.cdiv(end - begin, KEYS), SPLITS) * KEYS
        begin += split * share
        peak = tl.full((ROWS,), float("-inf"), tl.float32)
        norm = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, D), tl.float32)
        for block in range(begin, tl.minimum(begin + share, end), KEYS):
            key = block + tl.arange(0, KEYS)
            known = key < end
            at = _slots(tables + s * table_stride, key, known, kv, kv_heads, T)[:, None] * width
            at += d[None, :]
            inside = known[:, None] & (d < width)[None, :]
            keys = tl.load(k_cache + at, mask=inside, other=0.0).to(queries.dtype)
            values = tl.load(v_cache + at, mask=inside, other=0.0).to(queries.dtype)
            scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
            seen = known[None, :] & (key[None, :] <= position[:, None])
            if WINDOW > 0:
                seen = seen & (key[None, :] > position[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp(scores - safe[:, None])
            fade = tl.exp(peak - safe)
            norm = norm * fade + tl.sum(weights, 1)
            part = tl.dot(weights.to(queries.dtype), values, input_precision=PRECISION)
            total = total * fade[:, None] + part
            peak = higher
        some = norm > 0
        result = total / tl.where(some, norm, 1.0)[:, None]
        far = split * tokens * heads
        tl.store(out + far * width + place, result.to(out.dtype.element_ty), mask=loaded)
        if SPLITS > 1:
            level = tl.where(some, peak + tl.log(tl.where(some, norm, 1.0)), float("-inf"))
            tl.store(lse + far + token * heads + head, level, mask=valid)


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
    """q (N, H, D), caches (B, T, K, D), block_tables (S, most blocks), context_lens (S),
    cu_seqlens (S + 1) → (N, H, D). The contract is in `qwenkit.ops`.
    """
    if q.dtype == torch.bfloat16 and triton.knobs.runtime.interpret:  # it has no such product
        where = (block_tables, context_lens, cu_seqlens, scale, window)
        return paged_attention(q.float(), k_cache, v_cache, *where).to(q.dtype)
    q = q.contiguous()
    tokens, heads, width = q.shape
    sequences, kv_heads, size = len(context_lens), k_cache.shape[2], k_cache.shape[1]
    out = torch.empty_like(q)
    if not tokens:
        return out
    group = heads // kv_heads
    queries = 1 if tokens == sequences else _TILE
    tiles = tokens // queries + sequences
    longest = block_tables.shape[1] * size
    splits = max(1, min(_PROGRAMS // (tiles * kv_heads), longest // _SPLIT_KEYS, 32))
    target, lse = out, out
    if splits > 1:
        target = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
        lse = torch.empty((splits, tokens, heads), dtype=torch.float32, device=q.device)
    _attend[(tiles, kv_heads, splits)](
        q, k_cache, v_cache, block_tables, context_lens, cu_seqlens, target, lse, scale,
        sequences, tokens, heads, kv_heads, width, block_tables.stride(0),
        T=size, G=group, D=max(triton.next_power_of_2(width), 16), QUERIES=queries,
        ROWS=max(triton.next_power_of_2(queries * group), 16), KEYS=_KEYS, SPLITS=splits,
        WINDOW=window or 0, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    if splits == 1:
        return out
    weights = lse.softmax(0)[..., None]  # (splits, N, H, 1)
    return (target * weights).sum(0).to(q.dtype)
