"""Attention of short jets on a GPU, in Triton: a program has all keys of one jet and head.

FlashAttention works in tiles of 128 tokens, which jets of a few dozen leave mostly empty. Here the
keys of a jet are one tile, of the next power of two: softmax needs one pass, and no program waits
for the sums of another. A kernel is launched once for each size of tile, and at once leaves the
jets that have another. Where all queries of a jet are one tile too, no sum has to be kept from tile
to tile, and a program has less in hand. Queries and keys are normalised on the way, if weights of
their norms are given: their heads are in hand anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jetssl_cli.encoder import sums

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
def _inverse_rms(x, WIDTH: tl.constexpr, eps):
    """Of each row, (rows, 1), in float32."""
    x = x.to(tl.float32)
    return tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]


@triton.jit
@no_type_check
def _before_norm(above, normed, inverse, WIDTH: tl.constexpr):
    """Gradient of x, given that of x / rms(x)."""
    along = tl.sum(above * normed, 1)[:, None] / WIDTH
    return (above - normed * along) * inverse


@triton.jit
@no_type_check
def _product(q_weight, k_weight, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Of both weights: logits know them by that alone."""
    column = tl.arange(0, COLUMNS)
    of_q = tl.load(q_weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    return of_q * tl.load(k_weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _store(out, rows, head, of_row, of_head, tile, inside):
    columns = tl.arange(0, inside.shape[1])
    places = rows[:, None].to(tl.int64) * of_row + head * of_head + columns[None, :]
    tl.store(out + places, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _forward(
    q, k, v, out, q_weight, k_weight, q_bounds, k_bounds, scale, eps,
    q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head,
    NORMED: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr, ONCE: tl.constexpr, LESS: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    head, jet = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    k_first = tl.load(k_bounds + jet)
    keys = tl.load(k_bounds + jet + 1) - k_first
    if (keys > LESS) & (keys <= KEYS):
        q_first = tl.load(q_bounds + jet)
        queries = tl.load(q_bounds + jet + 1) - q_first
        n, column = tl.arange(0, KEYS), tl.arange(0, COLUMNS)
        key_inside = (n < keys)[:, None] & (column < WIDTH)[None, :]
        k_tile = _load(k, k_first + n, head, k_row, k_head, key_inside)
        v_tile = _load(v, k_first + n, head, v_row, v_head, key_inside)
        if NORMED:
            weight = _product(q_weight, k_weight, WIDTH, COLUMNS)
            k_tile = (k_tile * _inverse_rms(k_tile, WIDTH, eps)).to(v_tile.dtype)
        for first in range(0, QUERIES if ONCE else queries, QUERIES):
            m = first + tl.arange(0, QUERIES)
            inside = (m < queries)[:, None] & (column < WIDTH)[None, :]
            q_tile = _load(q, q_first + m, head, q_row, q_head, inside)
            if NORMED:
                normed = q_tile * _inverse_rms(q_tile, WIDTH, eps)
                q_tile = (normed * weight[None, :]).to(v_tile.dtype)
            p = _softmax(q_tile, k_tile, m, n, keys, scale, CAUSAL)
            mixed = tl.dot(p.to(v_tile.dtype), v_tile)
            _store(out, q_first + m, head, out_row, out_head, mixed, inside)


@triton.jit
@no_type_check
def _backward(
    q, k, v, above, of_q, of_k, of_v, of_product, q_weight, k_weight, q_bounds, k_bounds,
    scale, eps,
    q_row, q_head, k_row, k_head, v_row, v_head, above_row, above_head,
    of_q_row, of_q_head, of_k_row, of_k_head, of_v_row, of_v_head,
    NORMED: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr, ONCE: tl.constexpr, LESS: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    head, jet = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    k_first = tl.load(k_bounds + jet)
    keys = tl.load(k_bounds + jet + 1) - k_first
    if (keys > LESS) & (keys <= KEYS):
        q_first = tl.load(q_bounds + jet)
        queries = tl.load(q_bounds + jet + 1) - q_first
        n, column = tl.arange(0, KEYS), tl.arange(0, COLUMNS)
        key_inside = (n < keys)[:, None] & (column < WIDTH)[None, :]
        k_tile = _load(k, k_first + n, head, k_row, k_head, key_inside)
        v_tile = _load(v, k_first + n, head, v_row, v_head, key_inside)
        if NORMED:
            weight = _product(q_weight, k_weight, WIDTH, COLUMNS)
            k_tile = (k_tile * _inverse_rms(k_tile, WIDTH, eps)).to(v_tile.dtype)
        k_sum = tl.zeros((KEYS, COLUMNS), tl.float32)
        v_sum = tl.zeros((KEYS, COLUMNS), tl.float32)
        weight_sum = tl.zeros((COLUMNS,), tl.float32)
        for first in range(0, QUERIES if ONCE else queries, QUERIES):
            m = first + tl.arange(0, QUERIES)
            inside = (m < queries)[:, None] & (column < WIDTH)[None, :]
            q_tile = _load(q, q_first + m, head, q_row, q_head, inside)
            above_tile = _load(above, q_first + m, head, above_row, above_head, inside)
            if NORMED:
                inverse = _inverse_rms(q_tile, WIDTH, eps)
                normed = q_tile * inverse
                q_tile = (normed * weight[None, :]).to(v_tile.dtype)
            p = _softmax(q_tile, k_tile, m, n, keys, scale, CAUSAL)
            v_sum += tl.dot(tl.trans(p.to(above_tile.dtype)), above_tile)
            of_p = tl.dot(above_tile, tl.trans(v_tile))
            of_logits = p * (of_p - tl.sum(p * of_p, 1)[:, None]) * scale
            of_logits = of_logits.to(k_tile.dtype)
            k_sum += tl.dot(tl.trans(of_logits), q_tile)
            q_sum = tl.dot(of_logits, k_tile)
            if NORMED:
                weight_sum += tl.sum(q_sum * normed, 0)
                q_sum = _before_norm(q_sum * weight[None, :], normed, inverse, WIDTH)
            _store(of_q, q_first + m, head, of_q_row, of_q_head, q_sum, inside)
        if NORMED:
            k_tile = _load(k, k_first + n, head, k_row, k_head, key_inside)
            k_inverse = _inverse_rms(k_tile, WIDTH, eps)
            k_sum = _before_norm(k_sum, k_tile * k_inverse, k_inverse, WIDTH)
            place = tl.program_id(0).to(tl.int64) * WIDTH + column
            tl.store(of_product + place, weight_sum, mask=column < WIDTH)
        _store(of_k, k_first + n, head, of_k_row, of_k_head, k_sum, key_inside)
        _store(of_v, k_first + n, head, of_v_row, of_v_head, v_sum, key_inside)


def _launches(width: int, q_tile: int, k_tile: int, *, itself: bool) -> Iterator[dict[str, int]]:
    """How a kernel is launched for each size of tile; queries and keys may be the same tokens.

    The queries of a jet are one tile where that is small enough not to be mostly empty.
    """
    columns, less = max(16, triton.next_power_of_2(width)), -1
    for keys in [*(tile for tile in TILES if tile < k_tile), k_tile]:
        longest = min(q_tile, keys) if itself else q_tile
        once = longest <= (64 if itself else 32)
        yield {
            "WIDTH": width,
            "COLUMNS": columns,
            "QUERIES": longest if once else 16,
            "ONCE": once,
            "LESS": less,
            "KEYS": keys,
            "num_warps": 2 if keys * columns <= 1024 else 8 if keys > 128 else 4,
            "num_stages": 1,
        }
        less = keys


def attention(
    parts: Sequence[Tensor],
    q_bounds: Tensor,
    k_bounds: Tensor,
    q_tile: int,
    k_tile: int,
    *,
    causal: bool,
    weights: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v within each jet; zero without keys.

    Args:
        parts: q, k and v, (T, H, K) and twice (M, H, K); or q, (T, 1, H, K), and k and v in one,
            (M, 2, H, K); or all three in one, (T, 3, H, K). In half precision, K at most 64.
        q_bounds: (J + 1,), int32: the queries of jet j are the rows q_bounds[j]:q_bounds[j + 1].
            All rows belong to a jet.
        k_bounds: those of the keys.
        q_tile: a power of two, at least 16 and as many as the queries of the longest jet.
        k_tile: that of the keys; at most 256.
        causal: a query attends to the keys before it and its own.
        weights: queries become q / rms(q) times the first, keys k / rms(k) times the second.
        eps: of these norms, added to the mean square.
    """
    how = q_bounds, k_bounds, q_tile, k_tile, causal, eps
    out: Tensor = _Attention.apply(how, *(weights or (None, None)), *parts)  # type: ignore[no-untyped-call]
    return out


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, how: tuple[Any, ...], q_weight: Tensor | None, k_weight: Tensor | None,
        *parts: Tensor,
    ) -> Tensor:  # fmt: skip
        q_bounds, k_bounds, q_tile, k_tile, causal, eps = how
        parts = tuple(map(side_by_side, parts))
        ctx.how = how
        ctx.save_for_backward(q_weight, k_weight, *parts)
        q, k, v = _split(parts)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for tiles in _launches(q.shape[2], q_tile, k_tile, itself=len(parts) == 1):
            _forward[((len(q_bounds) - 1) * q.shape[1],)](
                q, k, v, out, q_weight, k_weight, q_bounds, k_bounds, q.shape[2] ** -0.5, eps,
                *_strides(q, k, v, out),
                NORMED=q_weight is not None, HEADS=q.shape[1], CAUSAL=causal, **tiles,
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_bounds, k_bounds, q_tile, k_tile, causal, eps = ctx.how
        q_weight, k_weight, *parts = ctx.saved_tensors
        above = side_by_side(grads[0])
        q, k, v = _split(parts)
        found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in parts]
        of_q, of_k, of_v = _split(found)
        jets, heads, width = len(q_bounds) - 1, *q.shape[1:]
        of_product = None
        if q_weight is not None:
            of_product = torch.empty(jets * heads, width, device=q.device)
        for tiles in _launches(width, q_tile, k_tile, itself=len(parts) == 1):
            _backward[(jets * heads,)](
                q, k, v, above, of_q, of_k, of_v, of_product, q_weight, k_weight,
                q_bounds, k_bounds, width**-0.5, eps,
                *_strides(q, k, v, above, of_q, of_k, of_v),
                NORMED=q_weight is not None, HEADS=heads, CAUSAL=causal, **tiles,
            )  # fmt: skip
        if of_product is None:
            return None, None, None, *found
        (of_weight,) = sums.of_all(of_product, torch.float32)
        of_weights = (of_weight * other.float() for other in (k_weight, q_weight))
        return None, *(x.to(q_weight.dtype) for x in of_weights), *found


def _split(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, in one tensor, in two or in three."""
    q, *others = parts
    if len(others) == 2:
        return q, others[0], others[1]
    q, k, v = (*q.unbind(1), *(x for other in others for x in other.unbind(1)))
    return q, k, v


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(axis) for x in tensors for axis in (0, 1)]


def side_by_side(x: Tensor) -> Tensor:
    """The numbers of the last axis next to each other, as kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()
