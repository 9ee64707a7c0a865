"""Sums over rows on a GPU, of each jet or of all, in Triton; in float32.

A program has all rows of one jet, or of a strip where no jets are asked for, so that no sum waits
for another. It has some of the columns, and those with the others run beside it: memory is read as
it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, MOST_COLUMNS = 4096, 128
"""Numbers that a program has in hand at once, and how many columns."""
STRIPS = 256
"""At most; their sums are added at the end."""


@triton.jit
@no_type_check
def _sums(
    above, x, inverses, means, bounds, sums, products, rows, jets, strip,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
    OWNED: tl.constexpr, PLAIN: tl.constexpr, TIMES: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Sums over the rows of a jet, or a strip: of ``above``, and of its product with normed x."""
    jet, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    c = part * COLUMNS + tl.arange(0, COLUMNS)
    if OWNED:
        first, last = tl.load(bounds + jet), tl.load(bounds + jet + 1)
    else:
        first, last = jet * strip, tl.minimum((jet + 1) * strip, rows)
    plain, times = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < last)[:, None] & (c < WIDTH)[None, :]
        places = r[:, None] * WIDTH + c[None, :]
        above_tile = tl.load(above + places, mask=inside, other=0.0).to(tl.float32)
        if PLAIN:
            plain += above_tile
        if TIMES:
            inverse = tl.load(inverses + r, mask=r < last, other=0.0)[:, None]
            x_tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
            if CENTRED:
                x_tile -= tl.load(means + r, mask=r < last, other=0.0)[:, None]
            times += above_tile * x_tile * inverse
    if jet < jets:
        place = jet.to(tl.int64) * WIDTH + c
        if PLAIN:
            found = tl.sum(plain, 0).to(sums.dtype.element_ty)
            tl.store(sums + place, found, mask=c < WIDTH)
        if TIMES:
            found = tl.sum(times, 0).to(products.dtype.element_ty)
            tl.store(products + place, found, mask=c < WIDTH)


@triton.jit
@no_type_check
def _total(
    found, out, rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum over the rows of each table of ``found``, all at once."""
    r, c = tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    table = tl.program_id(1)
    inside = (r < rows)[:, None] & (c < WIDTH)[None, :]
    places = table * rows * WIDTH + r[:, None] * WIDTH + c[None, :]
    summed = tl.sum(tl.load(found + places, mask=inside, other=0.0), 0)
    tl.store(out + table * WIDTH + c, summed.to(out.dtype.element_ty), mask=c < WIDTH)


@dataclass(frozen=True)
class Derived:
    """What gradients of the weights of a norm are made of, as kernels take them."""

    above: Tensor
    """Gradient of what came out, (rows, D)."""
    x: Tensor
    """What went in."""
    inverses: Tensor
    """1 / rms of each row."""
    means: Tensor | None
    """Of each row, where they were taken away."""


def tiles_of(width: int) -> dict[str, int]:
    """In how many parts the columns are divided, and the tiles of a part."""
    columns = min(MOST_COLUMNS, triton.next_power_of_2(width))
    parts, rows = triton.cdiv(width, columns), TILE // columns
    return {"WIDTH": width, "COLUMNS": columns, "PARTS": parts, "ROWS": rows}


def of_jets(norm: Derived, bounds: Tensor, like: Tensor) -> Tensor:
    """Sums over the rows of each jet: of ``above``, and of its product with normed x; (2, J, D).

    Args:
        norm: a norm without means.
        bounds: of the rows of jets; see ``Owners``.
        like: (J, D), in the type that is asked for.
    """
    out, tiles = norm.x.new_empty((2, *like.shape), dtype=like.dtype), tiles_of(like.shape[1])
    _sums[((len(bounds) - 1) * tiles["PARTS"],)](
        norm.above, norm.x, norm.inverses, None, bounds, out[0], out[1], 0, len(like), 0,
        OWNED=True, PLAIN=True, TIMES=True, CENTRED=False, **tiles,
    )  # fmt: skip
    return out


def of_all(
    above: Tensor, dtype: torch.dtype, norm: Derived | None = None, *, plain: bool = True
) -> Tensor:
    """Sums over all rows: of ``above``, and of its product with normed x; (1 or 2, D)."""
    width = above.shape[-1]
    rows, tiles = above.numel() // width, tiles_of(width)
    strip = max(triton.cdiv(rows, STRIPS), tiles["ROWS"])
    strips = triton.cdiv(rows, strip)
    shape = plain + (norm is not None), strips, width
    found = torch.empty(shape, dtype=torch.float32, device=above.device)
    x, inverses, means = (norm.x, norm.inverses, norm.means) if norm else (None, None, None)
    if rows:
        _sums[(strips * tiles["PARTS"],)](
            above, x, inverses, means, None, found[0], found[-1], rows, strips, strip,
            OWNED=False, PLAIN=plain, TIMES=norm is not None, CENTRED=means is not None, **tiles,
        )  # fmt: skip
    out = found.new_empty(len(found), width, dtype=dtype)
    _total[triton.cdiv(width, 16), len(found)](
        found, out, strips, WIDTH=width, COLUMNS=16, ROWS=triton.next_power_of_2(STRIPS)
    )
    return out
