"""Norms, gates and SwiGLU on a GPU, in Triton: one pass over the rows for each, either way.

The derivatives of what belongs to a jet are sums over its rows: there a program has all rows of one
jet, so that no sum waits for another. Statistics and sums are in float32.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from jetssl_cli.batch import Owners

TILE = 2048
"""Numbers that a program has in hand at once."""
STRIPS = 1024
"""Programs among which rows are divided where their sums belong to all of them."""


@triton.jit
@no_type_check
def _rows_of(x, r, of_row, inside):
    """Rows in float32; zero outside."""
    c = tl.arange(0, inside.shape[1])
    return tl.load(x + r[:, None] * of_row + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _put(out, r, of_row, tile, inside):
    c = tl.arange(0, inside.shape[1])
    tl.store(out + r[:, None] * of_row + c[None, :], tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _inverse_rms(x, WIDTH: tl.constexpr, eps):
    return tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]


@triton.jit
@no_type_check
def _norm(
    x, scale, shift, owner, out, rows, scale_row, shift_row, eps,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, OWNED: tl.constexpr,
):  # fmt: skip
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    x_tile = _rows_of(x, r, WIDTH, inside)
    x_tile *= _inverse_rms(x_tile, WIDTH, eps)
    if OWNED:
        jet = tl.load(owner + r, mask=r < rows, other=0)
        x_tile = x_tile * _rows_of(scale, jet, scale_row, inside)
        x_tile += _rows_of(shift, jet, shift_row, inside)
    else:
        x_tile *= tl.load(scale + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
    _put(out, r, WIDTH, x_tile, inside)


@triton.jit
@no_type_check
def _norm_back(
    x, scale, above, kept, bounds, of_x, of_scale, of_shift, rows, jets, strip, scale_row, eps,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    OWNED: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    jet, c = tl.program_id(0), tl.arange(0, COLUMNS)
    if OWNED:
        first, last = tl.load(bounds + jet), tl.load(bounds + jet + 1)
        scale += tl.where(jet < jets, jet, 0).to(tl.int64) * scale_row
    else:
        first, last = jet * strip, tl.minimum((jet + 1) * strip, rows)
    scale_tile = tl.load(scale + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
    scale_sum, shift_sum = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, last, ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < last)[:, None] & (c < WIDTH)[None, :]
        x_tile, above_tile = _rows_of(x, r, WIDTH, inside), _rows_of(above, r, WIDTH, inside)
        inverse = _inverse_rms(x_tile, WIDTH, eps)
        x_tile *= inverse
        scale_sum += tl.sum(above_tile * x_tile, 0)
        if OWNED:
            shift_sum += tl.sum(above_tile, 0)
        above_tile *= scale_tile
        along = tl.sum(above_tile * x_tile, 1)[:, None] / WIDTH
        x_sum = (above_tile - x_tile * along) * inverse
        if KEPT:
            x_sum += _rows_of(kept, r, WIDTH, inside)
        _put(of_x, r, WIDTH, x_sum, inside)
    if jet < jets:
        place = jet.to(tl.int64) * WIDTH + c
        tl.store(of_scale + place, scale_sum.to(of_scale.dtype.element_ty), mask=c < WIDTH)
        if OWNED:
            tl.store(of_shift + place, shift_sum.to(of_shift.dtype.element_ty), mask=c < WIDTH)


@triton.jit
@no_type_check
def _gate(
    x, y, gate, owner, out, rows, gate_row,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    gates = _rows_of(gate, tl.load(owner + r, mask=r < rows, other=0), gate_row, inside)
    added = _rows_of(y, r, WIDTH, inside) * gates
    _put(out, r, WIDTH, _rows_of(x, r, WIDTH, inside) + added, inside)


@triton.jit
@no_type_check
def _gate_back(
    y, gate, above, bounds, of_y, of_gate, jets, gate_row,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    jet, c = tl.program_id(0), tl.arange(0, COLUMNS)
    first, last = tl.load(bounds + jet), tl.load(bounds + jet + 1)
    gate += tl.where(jet < jets, jet, 0).to(tl.int64) * gate_row
    gates = tl.load(gate + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
    gate_sum = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, last, ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < last)[:, None] & (c < WIDTH)[None, :]
        above_tile = _rows_of(above, r, WIDTH, inside)
        gate_sum += tl.sum(above_tile * _rows_of(y, r, WIDTH, inside), 0)
        _put(of_y, r, WIDTH, above_tile * gates, inside)
    if jet < jets:
        place = jet.to(tl.int64) * WIDTH + c
        tl.store(of_gate + place, gate_sum.to(of_gate.dtype.element_ty), mask=c < WIDTH)


@triton.jit
@no_type_check
def _swiglu(
    x, out, rows,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    gate, value = _rows_of(x, 2 * r, WIDTH, inside), _rows_of(x, 2 * r + 1, WIDTH, inside)
    _put(out, r, WIDTH, gate * tl.sigmoid(gate) * value, inside)


@triton.jit
@no_type_check
def _swiglu_back(
    x, above, of_x, rows,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    gate, value = _rows_of(x, 2 * r, WIDTH, inside), _rows_of(x, 2 * r + 1, WIDTH, inside)
    above_tile, s = _rows_of(above, r, WIDTH, inside), tl.sigmoid(gate)
    _put(of_x, 2 * r, WIDTH, above_tile * value * s * (1 + gate * (1 - s)), inside)
    _put(of_x, 2 * r + 1, WIDTH, above_tile * gate * s, inside)


def _programs(x: Tensor) -> tuple[int, dict[str, int]]:
    """How many rows a tensor has, and in what tiles they are gone through."""
    width = x.shape[-1]
    columns = triton.next_power_of_2(width)
    tiles = {"WIDTH": width, "COLUMNS": columns, "ROWS": max(1, TILE // columns)}
    return x.numel() // width, tiles


def _even(x: Tensor) -> Tensor:
    """Rows one behind the other, and their numbers side by side."""
    return x if x.is_contiguous() else x.contiguous()


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute x / rms(x) * weight, and x: gradients of both are added in one pass.

    Args:
        x: (..., D), in half or single precision.
        weight: (D,).
        eps: added to the mean square.
    """
    found: tuple[Tensor, Tensor] = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return found


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, owners: Owners, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute x / rms(x) * scale + shift, and x, as ``rms_norm``.

    Args:
        x: (rows, D).
        scale: (J, D), of the jet that a row belongs to.
        shift: (J, D).
        owners: whose the rows are.
        eps: added to the mean square.
    """
    found: tuple[Tensor, Tensor] = _ModulatedNorm.apply(x, scale, shift, owners, eps)  # type: ignore[no-untyped-call]
    return found


def gated(x: Tensor, y: Tensor, gate: Tensor, owners: Owners) -> Tensor:
    """Compute x + gate * y, with the gate of the jet; (rows, D) both, and (J, D)."""
    out: Tensor = _Gated.apply(x, y, gate, owners)  # type: ignore[no-untyped-call]
    return out


def swiglu(x: Tensor) -> Tensor:
    """silu(first half) * second half of the last axis."""
    out: Tensor = _SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return out


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _normed(x, weight, None, None, eps), x

    @staticmethod
    def backward(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, _ = _norm_gradients(x, weight, None, above, ctx.eps)
        return of_x, of_weight.sum(0).to(weight.dtype), None


class _ModulatedNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, owners: Owners, eps: float
    ) -> tuple[Tensor, Tensor]:
        scale, shift = map(_side_by_side, (scale, shift))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scale, owners.bounds)
        ctx.eps = eps
        return _normed(x, scale, shift, owners.rows, eps), x

    @staticmethod
    def backward(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        x, scale, bounds = ctx.saved_tensors
        return *_norm_gradients(x, scale, bounds, above, ctx.eps), None, None


def _normed(
    x: Tensor, scale: Tensor, shift: Tensor | None, owner: Tensor | None, eps: float
) -> Tensor:
    x = _even(x)
    out, (rows, tiles) = torch.empty_like(x), _programs(x)
    if rows:
        _norm[(triton.cdiv(rows, tiles["ROWS"]),)](
            x, scale, shift, owner, out, rows,
            scale.stride(0), 0 if shift is None else shift.stride(0), eps,
            OWNED=owner is not None, **tiles,
        )  # fmt: skip
    return out


def _norm_gradients(
    x: Tensor, scale: Tensor, bounds: Tensor | None, above: tuple[Tensor | None, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of x; of scale, without bounds of each strip of rows; and of shift."""
    x, (of_normed, kept) = _even(x), above
    assert of_normed is not None
    of_normed, kept = _even(of_normed), None if kept is None else _even(kept)
    of_x, of_shift, (rows, tiles) = torch.empty_like(x), None, _programs(x)
    if bounds is None:
        programs = min(STRIPS, triton.cdiv(rows, tiles["ROWS"]))
        jets, strip = programs, triton.cdiv(rows, max(programs, 1))
        of_scale = torch.empty(jets, x.shape[-1], dtype=torch.float32, device=x.device)
    else:
        programs, jets, strip = len(bounds) - 1, len(scale), 0
        of_scale, of_shift = torch.empty((2, *scale.shape), dtype=scale.dtype, device=x.device)
    if programs:
        _norm_back[(programs,)](
            x, scale, of_normed, kept, bounds, of_x, of_scale, of_shift, rows, jets, strip,
            scale.stride(0), eps, OWNED=bounds is not None, KEPT=kept is not None, **tiles,
        )  # fmt: skip
    return of_x, of_scale, of_shift


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, owners: Owners) -> Tensor:
        x, y, gate = _even(x), _even(y), _side_by_side(gate)
        ctx.save_for_backward(y, gate, owners.bounds)
        out, (rows, tiles) = torch.empty_like(x), _programs(x)
        if rows:
            _gate[(triton.cdiv(rows, tiles["ROWS"]),)](
                x, y, gate, owners.rows, out, rows, gate.stride(0), **tiles
            )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, bounds = ctx.saved_tensors
        above, (_, tiles) = _even(grads[0]), _programs(y)
        of_y, of_gate = (
            torch.empty_like(y),
            torch.empty(gate.shape, dtype=gate.dtype, device=y.device),
        )
        _gate_back[(len(bounds) - 1,)](
            y, gate, above, bounds, of_y, of_gate, len(gate), gate.stride(0), **tiles
        )
        return above, of_y, of_gate, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = _even(x)
        ctx.save_for_backward(x)
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        rows, tiles = _programs(out)
        if rows:
            _swiglu[(triton.cdiv(rows, tiles["ROWS"]),)](x, out, rows, **tiles)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        above, of_x = _even(grads[0]), torch.empty_like(x)
        rows, tiles = _programs(above)
        if rows:
            _swiglu_back[(triton.cdiv(rows, tiles["ROWS"]),)](x, above, of_x, rows, **tiles)
        return of_x
