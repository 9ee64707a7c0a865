"""Quantiles of a feature, and the map onto a standard normal distribution through them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor, nn

NUM_QUANTILES = 500
EDGE = 1e-7
"""As in scikit-learn: within this of the smallest or largest value counts as outside."""
LIMIT = 5.199337582605575
"""As in scikit-learn: normal quantile of ``1 - EDGE``; scaled values lie within +- this."""


class QuantileScaler(nn.Module):
    """Maps each column onto a standard normal distribution through its own quantiles.

    The same map as scikit-learn's ``QuantileTransformer(output_distribution="normal")`` of float32
    values. A value's rank among the quantiles is linear between knots, and the scaled value is
    the normal quantile of that rank: sqrt(2) erfinv(offset + slope * value), in float64.
    """

    quantiles: Float[Tensor, "F N"]
    knots: Float[Tensor, "F M"]
    offsets: Float[Tensor, "F M"]
    slopes: Float[Tensor, "F M"]
    cells: Int[Tensor, "F 65536"]

    def __init__(self, quantiles: Float[Tensor, "F N"]) -> None:
        super().__init__()
        self.register_buffer("quantiles", quantiles.double())
        self._prepare()

    def _prepare(self) -> None:
        """Lay out the line that belongs to each interval between knots."""
        lines = [_lines(row) for row in self.quantiles.double().cpu().numpy()]
        cells, steps = zip(*(_cells(line[0]) for line in lines), strict=True)
        self._steps: tuple[int, ...] = steps
        spare = 2 ** max(steps)  # a search may look so far behind the last knot
        shape = len(lines), max(line.shape[1] for line in lines) + spare
        knots, offsets, slopes = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
        for row, line in enumerate(lines):
            for table, values in zip((knots, offsets, slopes), line, strict=True):
                table[row, : len(values)] = values
        tables = {"knots": _float32_above(knots), "offsets": offsets, "slopes": slopes}
        for name, table in {**tables, "cells": np.stack(cells)}.items():
            found = torch.from_numpy(table).to(self.quantiles.device)
            self.register_buffer(name, found, persistent=False)

    def _load_from_state_dict(self, *args: Any, **more: Any) -> None:
        super()._load_from_state_dict(*args, **more)
        self._prepare()

    def forward(self, values: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Scale physical values."""
        scaled = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        columns = values.float().t().contiguous()
        if values.is_cuda:
            return scaled.copy_(self.together(columns).t())
        for row, column in enumerate(columns):
            line = self.find_by_cells(row, column)
            offset = self.offsets[row].index_select(0, line)
            slope = self.slopes[row].index_select(0, line)
            share = offset.addcmul_(slope, column)
            scaled[:, row] = share.erfinv_().mul_(math.sqrt(2)).clamp_(-LIMIT, LIMIT)
        return scaled

    def together(self, columns: Float[Tensor, "F T"]) -> Float64[Tensor, "F T"]:
        """All columns with few operations, as a GPU wants it."""
        line = torch.searchsorted(self.knots, columns, right=True) - 1
        share = self.offsets.gather(1, line).addcmul_(self.slopes.gather(1, line), columns)
        return share.erfinv_().mul_(math.sqrt(2)).clamp_(-LIMIT, LIMIT)

    def find_by_cells(self, row: int, column: Float[Tensor, " T"]) -> Int[Tensor, " T"]:
        """The last knot of a row that is not above each value.

        The upper 16 bits of a float32 say between which few knots it lies: several times as fast on
        a CPU as a search among all.
        """
        upper = (column.view(torch.int32) >> 16) + 2**15
        found = self.cells[row].index_select(0, upper)
        for step in reversed(range(self._steps[row])):
            further = self.knots[row].index_select(0, found + 2**step) <= column
            found.add_(further, alpha=2**step)
        return found

    def inverse(self, scaled: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Physical values from scaled ones."""
        q = self.quantiles.double()
        last = q.shape[1] - 1
        place: Tensor = torch.special.ndtr(scaled.t().double()) * last
        below = place.floor().long().clamp(0, last - 1)
        low, high = q.gather(1, below), q.gather(1, below + 1)
        return (low + (place - below) * (high - low)).t().to(scaled.dtype)


def _lines(quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, M): knots, and the offset and slope of 2 rank - 1 from each knot to the next.

    The rank of a value is its place between the quantiles, divided by the last place; of several
    equal quantiles, the middle of their places.
    """
    last = len(quantiles) - 1
    values, first, counts = np.unique(quantiles, return_index=True, return_counts=True)
    end = first + counts - 1
    slope = np.append(1 / np.diff(values), 0.0)
    behind = np.where(counts > 1, np.nextafter(values, np.inf), values)
    at = np.stack([values, (first + end) / 2, np.zeros(len(values))])
    lines = np.stack([behind, end - slope * values, slope])
    lines = np.stack([at, lines], axis=2).reshape(3, -1)  # by turns
    lines = lines[:, np.stack([counts > 1, counts > 0], axis=1).ravel()]
    low, high = quantiles[0] + EDGE, quantiles[-1] - EDGE
    inner = lines[:, (lines[0] > low) & (lines[0] <= high)]
    start = lines[:, [np.searchsorted(lines[0], low, side="right") - 1]]
    start[0] = low
    top = np.nextafter(max(high, np.nextafter(low, -np.inf)), np.inf)
    lines = np.concatenate([start, inner], axis=1)
    lines = np.stack([lines[0], 2 * lines[1] / last - 1, 2 * lines[2] / last])
    beyond = 1 - EDGE  # scaled beyond the limit, and, unlike 1, at no cost in erfinv
    below, above = np.array([[-np.inf, -beyond, 0], [top, beyond, 0]])[:, :, None]
    return np.concatenate([below, lines, above], axis=1)


def _float32_above(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The smallest float32 that is not below: for float32 x, x >= it if and only if x >= value."""
    rounded = values.astype(np.float32)
    return np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _cells(knots: NDArray[np.float64]) -> tuple[NDArray[np.int32], int]:
    """For the upper 16 bits of a float32: the last knot not above any value of such a cell.

    And in how many halving steps the last knot not above a value is found from there.
    """
    upper = (np.arange(2**16) ^ 2**15).astype(np.uint32) << 16  # in the order of signed integers
    with np.errstate(invalid="ignore"):
        ends = np.stack([upper, upper | 0xFFFF]).view(np.float32).astype(np.float64)
    ends[1] = np.where(np.isnan(ends[1]), ends[0], ends[1])  # of infinity
    ends[np.isnan(ends)] = np.inf
    low, high = np.searchsorted(knots, np.sort(ends, axis=0), side="right")
    return (low - 1).astype(np.int32), int((high - low).max()).bit_length()


def quantiles(column: NDArray[np.float32]) -> NDArray[np.float64]:
    """Quantiles of a sorted column, (NUM_QUANTILES,): zeros if it is empty.

    The same numbers, bit for bit, as ``np.percentile`` finds in a float64 copy of the column.
    """
    if len(column) == 0:
        return np.zeros(NUM_QUANTILES)
    percents = np.linspace(0, 1, NUM_QUANTILES) * 100  # ties depend on this rounding
    last = len(column) - 1
    place = last * (percents / 100)
    below = np.minimum(place.astype(np.int64), last)
    part = place - below
    low = column[below].astype(np.float64)
    high = column[np.minimum(below + 1, last)].astype(np.float64)
    step = high - low
    between = np.where(part < 0.5, low + step * part, high - step * (1 - part))
    found: NDArray[np.float64] = np.maximum.accumulate(between)
    return found
