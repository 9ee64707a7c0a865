"""Kernels of a GPU for norms, gates and SwiGLU, in Triton: one pass over the rows for each.

Statistics are in float32. ``fused.py`` runs them.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


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
    return tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)


@triton.jit
@no_type_check
def _mean(x, WIDTH: tl.constexpr):
    return tl.sum(x, 1) / WIDTH


@triton.jit
@no_type_check
def _of_columns(x, c, WIDTH: tl.constexpr):
    """What belongs to columns, for all rows."""
    return tl.load(x + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
@no_type_check
def norm(
    x, scale, shift, owner, out, rows, scale_row, shift_row, eps,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    OWNED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """x / rms(x) * scale, with the shift of the jet; or with x less its mean, and one shift."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    x_tile = _rows_of(x, r, WIDTH, inside)
    if CENTRED:
        x_tile = tl.where(inside, x_tile - _mean(x_tile, WIDTH)[:, None], 0.0)
    x_tile *= _inverse_rms(x_tile, WIDTH, eps)[:, None]
    if OWNED:
        jet = tl.load(owner + r, mask=r < rows, other=0)
        x_tile = x_tile * _rows_of(scale, jet, scale_row, inside)
        x_tile += _rows_of(shift, jet, shift_row, inside)
    else:
        x_tile *= _of_columns(scale, c, WIDTH)
        if CENTRED:
            x_tile += _of_columns(shift, c, WIDTH)
    _put(out, r, WIDTH, x_tile, inside)


@triton.jit
@no_type_check
def norm_back(
    x, scale, owner, above, kept, of_x, inverses, means, rows, scale_row, eps,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    OWNED: tl.constexpr, KEPT: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Gradient of x, with that of x beside the norm; and mean and 1 / rms of each row."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    x_tile, above_tile = _rows_of(x, r, WIDTH, inside), _rows_of(above, r, WIDTH, inside)
    if CENTRED:
        mean = _mean(x_tile, WIDTH)
        tl.store(means + r, mean, mask=r < rows)
        x_tile = tl.where(inside, x_tile - mean[:, None], 0.0)
    inverse = _inverse_rms(x_tile, WIDTH, eps)
    x_tile *= inverse[:, None]
    tl.store(inverses + r, inverse, mask=r < rows)
    if OWNED:
        jet = tl.load(owner + r, mask=r < rows, other=0)
        above_tile *= _rows_of(scale, jet, scale_row, inside)
    else:
        above_tile *= _of_columns(scale, c, WIDTH)
    x_sum = above_tile - x_tile * _mean(above_tile * x_tile, WIDTH)[:, None]
    if CENTRED:
        x_sum -= _mean(above_tile, WIDTH)[:, None]
    x_sum *= inverse[:, None]
    if KEPT:
        x_sum += _rows_of(kept, r, WIDTH, inside)
    _put(of_x, r, WIDTH, x_sum, inside)


@triton.jit
@no_type_check
def gate(
    x, y, gate, owner, out, rows, gate_row,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """x + gate * y, with the gate of the jet."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    gates = _rows_of(gate, tl.load(owner + r, mask=r < rows, other=0), gate_row, inside)
    added = _rows_of(y, r, WIDTH, inside) * gates
    _put(out, r, WIDTH, _rows_of(x, r, WIDTH, inside) + added, inside)


@triton.jit
@no_type_check
def gate_back(
    y, gate, above, bounds, of_y, of_gate, jets, gate_row,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of y, and of the gate of each jet."""
    jet, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    c = part * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(bounds + jet), tl.load(bounds + jet + 1)
    gate += tl.where(jet < jets, jet, 0).to(tl.int64) * gate_row
    gates = tl.load(gate + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
    gate_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < last)[:, None] & (c < WIDTH)[None, :]
        places = r[:, None] * WIDTH + c[None, :]
        above_tile = tl.load(above + places, mask=inside, other=0.0).to(tl.float32)
        gate_sum += above_tile * tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(of_y + places, (above_tile * gates).to(of_y.dtype.element_ty), mask=inside)
    if jet < jets:
        found = tl.sum(gate_sum, 0).to(of_gate.dtype.element_ty)
        tl.store(of_gate + jet.to(tl.int64) * WIDTH + c, found, mask=c < WIDTH)


@triton.jit
@no_type_check
def swiglu(
    x, out, rows,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """silu(first half) * second half."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    gate, value = _rows_of(x, 2 * r, WIDTH, inside), _rows_of(x, 2 * r + 1, WIDTH, inside)
    _put(out, r, WIDTH, gate * tl.sigmoid(gate) * value, inside)


@triton.jit
@no_type_check
def swiglu_back(
    x, above, of_x, rows,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of both halves."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    gate, value = _rows_of(x, 2 * r, WIDTH, inside), _rows_of(x, 2 * r + 1, WIDTH, inside)
    above_tile, s = _rows_of(above, r, WIDTH, inside), tl.sigmoid(gate)
    _put(of_x, 2 * r, WIDTH, above_tile * value * s * (1 + gate * (1 - s)), inside)
    _put(of_x, 2 * r + 1, WIDTH, above_tile * gate * s, inside)
