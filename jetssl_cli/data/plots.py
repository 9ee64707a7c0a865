"""Histograms of every feature, by class: physical and scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.quantiles import LIMIT
from jetssl_cli.data.scaling import fit_scaling
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.data.style import legend, line, panels, save, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 10
FEWEST_BINS, MOST_BINS = 15, 100
TAILS = (0.5, 1.0, 2.5, 5.0)
"""Percent of the values on each side that may lie beyond an axis: the first with which the axis is
at most ``WIDEST`` times as long as the middle half of the values, or else the last."""
WIDEST = 25


@dataclass(frozen=True)
class _Values:
    """The values of one column, and the class of each."""

    label: str
    values: NDArray[Any]
    classes: NDArray[Any]


def plot(
    schema: Schema, jets: JetArrays, folder: Path, *, classes: Mapping[str, int], note: str
) -> list[Path]:
    """Plot jets, by the classes that most of them have; the number of jets is not 0.

    Constituents and jets with values that are not finite are left out.

    Args:
        schema: what the columns mean.
        jets: a sample of those of a file.
        folder: where the figures go.
        classes: class -> number of jets in the file.
        note: what stands below each figure.

    Returns:
        The files: ``constituents``, ``jets``, both ``_scaled``, and ``classes``; PNG and PDF.

    Raises:
        DataError: the files cannot be written.
    """
    jets = jets.take(np.flatnonzero(np.isfinite(jets.jets).all(axis=1)))
    jets = jets.keep(np.asarray(np.isfinite(jets.features).all(axis=1)))
    scaled = fit_scaling(schema, [jets])(to_batch(jets)) if len(jets) else to_batch(jets)
    shown = _largest(jets.labels, len(schema.classes))
    style = _Style(schema.classes, shown)
    absent = schema.missing(jets.ids)
    owner = np.repeat(jets.labels, jets.sizes)

    def constituents(values: NDArray[Any]) -> list[_Values]:
        return [
            _Values(_label(feature), values[there, index], owner[there])
            for index, feature in enumerate(schema.constituents)
            for there in [~absent[:, index]]
        ]

    def of_jets(values: NDArray[Any]) -> list[_Values]:
        pairs = zip(schema.jets, values.T, strict=True)
        return [_Values(_label(feature), column, jets.labels) for feature, column in pairs]

    features = jets.features.astype(np.float32)
    draw: dict[str, Callable[[], Any]] = {
        "constituents": lambda: _grid(constituents(features), style, note, _histogram),
        "constituents_scaled": lambda: _grid(
            constituents(scaled.features.numpy()), style, note, _scaled
        ),
        "jets": lambda: _grid(of_jets(jets.jets), style, note, _histogram),
        "jets_scaled": lambda: _grid(of_jets(scaled.jets.numpy()), style, note, _scaled),
        "classes": lambda: _overview(classes, schema, jets, style, note),
    }
    with settings():
        return [path for name, figure in draw.items() for path in save(figure(), folder / name)]


class _Style:
    """The line of each class that is shown."""

    def __init__(self, classes: Sequence[str], shown: Sequence[int]) -> None:
        self.classes, self.shown = classes, shown

    def line(self, index: int) -> dict[str, Any]:
        """How the class of this index is drawn."""
        return {**line(self.shown.index(index)), "label": self.classes[index]}

    @property
    def title(self) -> str:
        """Of the legend."""
        few = len(self.shown) < len(self.classes)
        return f"{len(self.shown)} largest of {len(self.classes)} classes" if few else "class"


def _largest(labels: NDArray[Any], count: int) -> list[int]:
    """The classes with most jets, in the order of the labels."""
    numbers = np.bincount(labels, minlength=count)
    largest = np.argsort(-numbers, kind="stable")[:MOST_CLASSES]
    return sorted(int(index) for index in largest if numbers[index])


def _label(feature: Feature) -> str:
    unit = "" if feature.unit == "1" else f" [{feature.unit}]"
    return f"{feature.name}{unit}" + (", charged" if feature.charged_only else "")


def _grid(
    shown: Sequence[_Values],
    style: _Style,
    note: str,
    draw: Callable[[Axes, _Values, _Style], None],
) -> Figure:
    """One panel per column, and the legend in the cell behind the last."""
    figure, axes = panels(len(shown) + 1, note)
    for axis, panel in zip(axes, shown, strict=False):
        draw(axis, panel, style)
    legend(axes[-1], axes[0], style.title)
    return figure


def _histogram(axis: Axes, panel: _Values, style: _Style) -> None:
    """Share of each class in each bin; what lies beyond the axis is written above it."""
    pooled = panel.values[np.isin(panel.classes, style.shown)]
    edges, logarithmic = _edges(pooled, _num_bins(panel, style))
    highest = _draw(axis, panel, style, edges)
    axis.set_xlabel(panel.label)
    axis.set_xlim(edges[0], edges[-1])
    axis.set_xscale("log" if logarithmic else "linear")
    if len(highest) and highest.max() > 30 * np.median(highest):
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, 1.1 * highest.max(initial=1e-9))
    for share, side, text in (
        ((pooled < edges[0]).mean() if len(pooled) else 0, "left", "{} below"),
        ((pooled > edges[-1]).mean() if len(pooled) else 0, "right", "{} above"),
    ):
        if share:
            told = f"{100 * share:.1f} %" if share > 0.0005 else "< 0.1 %"
            axis.set_title(text.format(told), loc=side, fontsize="x-small", color="0.35")  # type: ignore[arg-type]


def _scaled(axis: Axes, panel: _Values, style: _Style) -> None:
    """Share of each class in each bin, beside a standard normal distribution."""
    edges = np.linspace(-LIMIT - 0.1, LIMIT + 0.1, _num_bins(panel, style) + 1)
    normal = torch.special.ndtr(torch.from_numpy(edges)).diff().numpy()
    axis.stairs(
        normal,
        edges,
        fill=True,
        color="0.88",
        label="standard normal",
    )
    highest = _draw(axis, panel, style, edges)
    axis.set_xlabel(panel.label.split(" [")[0].split(",")[0] + ", scaled")
    axis.set_ylim(0, 1.1 * max(highest.max(initial=0), float(normal.max())))


def _draw(
    axis: Axes, panel: _Values, style: _Style, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draw the lines; returns their bins that are not empty."""
    filled = [np.zeros(0)]
    for index in style.shown:
        own = panel.values[panel.classes == index]
        share = np.histogram(own, edges)[0] / max(len(own), 1)
        axis.stairs(share, edges, baseline=None, **style.line(index))
        filled.append(share[share > 0])
    axis.set_ylabel("share per bin")
    return np.concatenate(filled)


def _num_bins(panel: _Values, style: _Style) -> int:
    """Three times the cube root of the values of a class (half as many again as Rice's rule)."""
    each = len(panel.values) / max(len(style.shown), 1)
    return int(np.clip(3 * each ** (1 / 3), FEWEST_BINS, MOST_BINS))


def _edges(values: NDArray[Any], count: int) -> tuple[NDArray[np.float64], bool]:
    """Bins that hold all but the tails of the values, and whether they grow with the value."""
    if not len(values):
        return np.linspace(0, 1, count + 1), False
    if (values == np.round(values)).all():
        low, high = float(values.min()), float(values.max())
        width = max(1, round((high - low + 1) / (1.3 * count)))
        return np.arange(low - 0.5, high + width + 0.5, width, dtype=np.float64), False
    quarter, median, three_quarters = np.percentile(values.astype(np.float64), (25, 50, 75))
    low, high = np.percentile(values.astype(np.float64), (TAILS[0], 100 - TAILS[0]))
    if low > 0 and high > 50 * low and median - low < 0.15 * (high - low):
        return np.geomspace(low, high, count + 1), True
    for tail in TAILS[1:]:
        if high - low > WIDEST * (three_quarters - quarter) > 0:
            low, high = np.percentile(values.astype(np.float64), (tail, 100 - tail))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, count + 1), False


def _overview(
    classes: Mapping[str, int], schema: Schema, jets: JetArrays, style: _Style, note: str
) -> Figure:
    """Jets of each class, constituents of each jet, and the particle classes."""
    figure, axes = panels(4 if schema.ids else 3, note, columns=2)
    names = [schema.classes[index] for index in style.shown]
    counts = [classes[name] for name in names]
    colours = [style.line(index)["color"] for index in style.shown]
    bars = axes[0].barh(names[::-1], counts[::-1], color=colours[::-1])
    axes[0].bar_label(bars, [f" {count:,}" for count in counts[::-1]], fontsize="x-small")
    axes[0].set_xlim(0, 1.2 * max(counts, default=1))
    axes[0].set_xlabel("jets in the file")
    axes[0].tick_params(axis="y", which="both", left=False, right=False)
    axes[0].tick_params(axis="y", labelsize="small")
    _histogram(axes[1], _Values("constituents of a jet, as stored", jets.sizes, jets.labels), style)
    if schema.ids:
        owner = np.repeat(jets.labels, jets.sizes)
        _draw(axes[2], _Values("", jets.ids, owner), style, np.arange(-0.5, len(schema.ids)))
        axes[2].set_yscale("log")
        axes[2].set_ylabel("share of the constituents")
        axes[2].set_xticks(range(len(schema.ids)), schema.ids, rotation=40, ha="right")
        axes[2].tick_params(axis="x", which="both", top=False, bottom=False, labelsize="small")
    legend(axes[-1], axes[1], style.title)
    return figure
