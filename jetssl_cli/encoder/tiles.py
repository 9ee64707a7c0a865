"""Attention of short jets on a GPU, in Triton: a program has all keys of one jet and head.

FlashAttention works in tiles of 128 tokens, which jets of a few dozen leave mostly empty. Here the
keys of a jet are one tile, of the next power of two: softmax needs one pass, and no program waits
for the sums of another. A kernel is launched once for each size of tile, and at once leaves the
jets that have another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = (32, 64, 128, 256)
"""A batch whose longest jet needs one of these is gone through with the smaller ones as well."""


@triton.jit
@no_type_check
def _load(x, rows, head, of_row, of_head, inside):
    """Rows of one head; zero outside."""
    columns = tl.arange(0, inside.shape[1])
    places = rows[:, None].to(tl.int64) * of_row + head * of_head + columns[None, :]
    return tl.load(x + places, mask=inside, other=0.0)


@triton.jit
@no_type_check
def _softmax(q, k, m, n, keys, scale, CAUSAL: tl.constexpr):
    """softmax(q k^T scale) over the keys there are; zero without any."""
    seen = n[None, :] < keys
    if CAUSAL:
        seen = seen & (n[None, :] <= m[:, None])
    logits = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, -1e30)
    e = tl.where(seen, tl.exp(logits - tl.max(logits, 1)[:, None]), 0.0)
    total = tl.sum(e, 1)
    return e / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit
@no_type_check
def _forward(
    q, k, v, out, q_bounds, k_bounds, scale,
    q_row, q_head, k_row, k_head, v_row, v_head,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr, LESS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    head, jet = tl.program_id(0), tl.program_id(1)
    k_first = tl.load(k_bounds + jet)
    keys = tl.load(k_bounds + jet + 1) - k_first
    if (keys > LESS) & (keys <= KEYS):
        q_first = tl.load(q_bounds + jet)
        queries = tl.load(q_bounds + jet + 1) - q_first
        n, column = tl.arange(0, KEYS), tl.arange(0, COLUMNS)
        key_inside = (n < keys)[:, None] & (column < WIDTH)[None, :]
        k_tile = _load(k, k_first + n, head, k_row, k_head, key_inside)
        v_tile = _load(v, k_first + n, head, v_row, v_head, key_inside)
        for first in range(0, queries, QUERIES):
            m = first + tl.arange(0, QUERIES)
            inside = (m < queries)[:, None] & (column < WIDTH)[None, :]
            q_tile = _load(q, q_first + m, head, q_row, q_head, inside)
            p = _softmax(q_tile, k_tile, m, n, keys, scale, CAUSAL)
            mixed = tl.dot(p.to(v_tile.dtype), v_tile)
            places = ((q_first + m)[:, None].to(tl.int64) * HEADS + head) * WIDTH + column[None, :]
            tl.store(out + places, mixed.to(v_tile.dtype), mask=inside)


@triton.jit
@no_type_check
def _backward(
    q, k, v, above, of_q, of_k, of_v, q_bounds, k_bounds, scale,
    q_row, q_head, k_row, k_head, v_row, v_head, above_row, above_head,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr, LESS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    head, jet = tl.program_id(0), tl.program_id(1)
    k_first = tl.load(k_bounds + jet)
    keys = tl.load(k_bounds + jet + 1) - k_first
    if (keys > LESS) & (keys <= KEYS):
        q_first = tl.load(q_bounds + jet)
        queries = tl.load(q_bounds + jet + 1) - q_first
        n, column = tl.arange(0, KEYS), tl.arange(0, COLUMNS)
        key_inside = (n < keys)[:, None] & (column < WIDTH)[None, :]
        k_tile = _load(k, k_first + n, head, k_row, k_head, key_inside)
        v_tile = _load(v, k_first + n, head, v_row, v_head, key_inside)
        k_sum = tl.zeros((KEYS, COLUMNS), tl.float32)
        v_sum = tl.zeros((KEYS, COLUMNS), tl.float32)
        for first in range(0, queries, QUERIES):
            m = first + tl.arange(0, QUERIES)
            inside = (m < queries)[:, None] & (column < WIDTH)[None, :]
            q_tile = _load(q, q_first + m, head, q_row, q_head, inside)
            above_tile = _load(above, q_first + m, head, above_row, above_head, inside)
            p = _softmax(q_tile, k_tile, m, n, keys, scale, CAUSAL)
            v_sum += tl.dot(tl.trans(p.to(above_tile.dtype)), above_tile)
            of_p = tl.dot(above_tile, tl.trans(v_tile))
            of_logits = p * (of_p - tl.sum(p * of_p, 1)[:, None]) * scale
            of_logits = of_logits.to(k_tile.dtype)
            k_sum += tl.dot(tl.trans(of_logits), q_tile)
            q_sum = tl.dot(of_logits, k_tile)
            places = ((q_first + m)[:, None].to(tl.int64) * HEADS + head) * WIDTH + column[None, :]
            tl.store(of_q + places, q_sum.to(q_tile.dtype), mask=inside)
        key_places = ((k_first + n)[:, None].to(tl.int64) * HEADS + head) * WIDTH + column[None, :]
        tl.store(of_k + key_places, k_sum.to(k_tile.dtype), mask=key_inside)
        tl.store(of_v + key_places, v_sum.to(k_tile.dtype), mask=key_inside)


def _launches(width: int, q_tile: int, k_tile: int) -> Iterator[dict[str, int]]:
    """How a kernel is launched for each size of tile."""
    columns, less = max(16, triton.next_power_of_2(width)), -1
    for keys in [*(tile for tile in TILES if tile < k_tile), k_tile]:
        yield {
            "WIDTH": width,
            "COLUMNS": columns,
            "QUERIES": min(q_tile, 16 if keys > 128 else 32),
            "LESS": less,
            "KEYS": keys,
            "num_warps": 2 if keys * columns <= 1024 else 8 if keys > 128 else 4,
        }
        less = keys


_GIVEN = (
    "Tensor q, Tensor k, Tensor v, Tensor q_bounds, Tensor k_bounds, "
    "SymInt q_tile, SymInt k_tile, bool causal"
)


@torch.library.custom_op("jetssl::tiled_attention", mutates_args=(), schema=f"({_GIVEN}) -> Tensor")
def attention(
    q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor,
    q_tile: int, k_tile: int, causal: bool,
) -> Tensor:  # fmt: skip
    """softmax(q k^T / sqrt(K)) v within each jet; zero without keys.

    Args:
        q: (T, H, K), in half precision, K at most 64.
        k: (M, H, K).
        v: (M, H, K).
        q_bounds: (J + 1,), int32: the queries of jet j are the rows q_bounds[j]:q_bounds[j + 1].
            All rows belong to a jet.
        k_bounds: those of the keys.
        q_tile: a power of two, at least 16 and as many as the queries of the longest jet.
        k_tile: that of the keys; at most 256.
        causal: a query attends to the keys before it and its own.
    """
    q, k, v = map(_close, (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for how in _launches(q.shape[2], q_tile, k_tile):
        _forward[q.shape[1], len(q_bounds) - 1](
            q, k, v, out, q_bounds, k_bounds, q.shape[2] ** -0.5,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            HEADS=q.shape[1], CAUSAL=causal, **how,
        )  # fmt: skip
    return out


@torch.library.custom_op(
    "jetssl::tiled_attention_backward",
    mutates_args=(),
    schema=f"(Tensor above, {_GIVEN}) -> (Tensor, Tensor, Tensor)",
)
def _attention_backward(
    above: Tensor, q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor,
    q_tile: int, k_tile: int, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, given that of what came out."""
    above, q, k, v = map(_close, (above, q, k, v))
    of_q, of_k, of_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for how in _launches(q.shape[2], q_tile, k_tile):
        _backward[q.shape[1], len(q_bounds) - 1](
            q, k, v, above, of_q, of_k, of_v, q_bounds, k_bounds, q.shape[2] ** -0.5,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *above.stride()[:2],
            HEADS=q.shape[1], CAUSAL=causal, **how,
        )  # fmt: skip
    return of_q, of_k, of_v


def _close(x: Tensor) -> Tensor:
    """The numbers of a head side by side."""
    return x if x.stride(2) == 1 else x.contiguous()


@attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


@_attention_backward.register_fake
def _(above: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    del above
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:5])
    ctx.how = inputs[5:]


def _derivatives(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(above, *ctx.saved_tensors, *ctx.how), *5 * [None]


attention.register_autograd(_derivatives, setup_context=_keep)
