"""Plots of score files: ROC curves, confusion matrices, scores of each class, calibration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jetssl_cli.data.style import line, panels
from jetssl_cli.scores.curves import Curves
from jetssl_cli.scores.metrics import BACKGROUND, WORKING_POINTS, wilson
from jetssl_cli.scores.rows import Row, run_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*<>"
LEAST_PASSING = 10
"""A ROC curve ends where fewer background jets pass: what is left is noise."""
FIRST_SEED = "; of several seeds, those of the first"
MOST_WITHIN = 5
"""A legend of more runs than these stands beside the plot."""
BACKGROUND_LINE: dict[str, Any] = {"color": "#bd1f01", "linestyle": "-", "linewidth": 1.6}
OTHERS_LINE: dict[str, Any] = {"color": "#000000", "linestyle": (0, (2.5, 1.2)), "linewidth": 1.4}


def draw(rows: Sequence[Row], curves: Mapping[str, Curves | None]) -> Iterator[tuple[str, Figure]]:
    """Yield ``roc``, ``calibration``, and of each row ``confusion_NAME`` and ``scores_NAME``.

    To be called, and the figures to be saved, within ``settings()``.

    Args:
        rows: of the table.
        curves: by score file; of a row over several seeds those of its first file are drawn.
    """
    names = run_names(rows)
    shown = [(name, row, found) for name, row in zip(names, rows, strict=True)
             if (found := curves[row.scores]) is not None]  # fmt: skip
    yield "roc", _roc(shown)
    yield "calibration", _calibration([(name, row) for name, row, _ in shown])
    stems: set[str] = set()
    for name, row, found in shown:
        plain = stem = re.sub(r"[^\w.-]+", "_", name).strip("_")
        number = 1
        while stem in stems:
            number += 1
            stem = f"{plain}_{number}"
        stems.add(stem)
        yield f"confusion_{stem}", _confusion(name, row)
        yield f"scores_{stem}", _scores(_short(name, 80) + FIRST_SEED * bool(row.seeds), found)


def _roc(runs: Sequence[tuple[str, Row, Curves]]) -> Figure:
    """A panel for each signal, a line for each run; a marker at the working point."""
    signals = [name for name in runs[0][2].roc if all(name in found.roc for *_, found in runs)]
    background = runs[0][2].background
    sizes = sorted({roc.num_background for *_, found in runs for roc in found.roc.values()})
    note = (
        f"background: {', '.join(f'{size:,}' for size in sizes)} jets; "
        f"curves end where fewer than {LEAST_PASSING} of them pass"
        f"{FIRST_SEED * any(row.seeds for _, row, _ in runs)}"
    )
    figure, axes = panels(len(signals) + 1, note)
    for axis, signal in zip(axes, signals, strict=False):
        least = 1.0
        for place, (name, row, found) in enumerate(runs):
            roc, style = found.roc[signal], line(place)
            there = roc.passed * roc.num_background >= LEAST_PASSING
            x, passed = roc.efficiency[there], roc.passed[there]
            half = np.sqrt((1 - passed) / (passed * roc.num_background))  # relative, binomial
            axis.plot(x, 1 / passed, label=name, **style)
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axis.fill_between(x, (1 - half) / passed, (1 + half) / passed, **band)
            least = min([least, *x])
            if (point := row.rejection.get(signal)) is not None:
                above = point.value if point.high is None else point.high - point.value
                axis.errorbar(
                    point.efficiency,
                    point.value,
                    [[point.value - point.low], [above]],
                    lolims=point.high is None,
                    color=style["color"],
                    elinewidth=1,
                    capsize=2,
                    **_marker(place),
                )
                least = min(least, point.efficiency)
        axis.set_yscale("log")
        axis.set_xlim(np.floor(10 * least) / 10 if least < 0.97 else 0.9, 1)
        axis.set_ylim(bottom=1)
        axis.set_xlabel(f"{signal} efficiency")
        axis.set_ylabel(f"rejection of {background}")
        if signal in WORKING_POINTS:
            axis.axvline(WORKING_POINTS[signal], color="0.6", lw=0.8, ls=":", zorder=0)
    _legend(
        axes[-1], [name for name, *_ in runs], markers=not WORKING_POINTS.keys().isdisjoint(signals)
    )
    return figure


def _marker(place: int) -> dict[str, Any]:
    return {
        "marker": _shape(place),
        "markersize": 6,
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
    }


def _shape(place: int) -> str:
    return MARKERS[(place + place // len(MARKERS)) % len(MARKERS)]


def _legend(axis: Axes, names: Sequence[str], *, markers: bool) -> None:
    from matplotlib.lines import Line2D

    axis.set_axis_off()
    handles = [
        Line2D([], [], label=_short(name), **line(place), **(_marker(place) if markers else {}))
        for place, name in enumerate(names)
    ]
    title = "run, with working point" if markers else "run"
    axis.legend(
        handles=handles,
        loc="center",
        handlelength=3.2,
        fontsize="small",
        alignment="left",
        title=title,
    )


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _calibration(runs: Sequence[tuple[str, Row]]) -> Figure:
    """How often the answers are right, by their confidence, above the shares of jets."""
    from matplotlib.figure import Figure

    beside = len(runs) > MOST_WITHIN
    figure = Figure(figsize=(5.6 + 3.2 * beside, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    for place, (name, row) in enumerate(runs):
        style, found = line(place), row.calibration
        points = [
            (x, y, *wilson(round(y * n), n))
            for x, y, n in zip(found.confidence, found.accuracy, found.num_jets, strict=True)
            if x is not None and y is not None
        ]
        x, y, low, high = map(np.array, zip(*points, strict=True))
        error = "" if found.error.value is None else f", ECE {found.error.value:.3f}"
        upper.errorbar(
            x, y, np.abs([y - low, high - y]), label=f"{_short(name)}{error}",
            marker=_shape(place), markersize=5, capsize=2, elinewidth=1, **style,
        )  # fmt: skip
        shares = np.array(found.num_jets) / sum(found.num_jets)
        edges = np.linspace(0, 1, len(shares) + 1)
        lower.stairs(shares, edges, baseline=None, **style)
    upper.set_ylim(0, 1)
    upper.set_ylabel("share of right answers")
    legend: dict[str, Any] = {"fontsize": "small", "handlelength": 3.2}
    if beside:
        figure.legend(loc="outside right upper", **legend)
    else:
        upper.legend(loc="upper left", **legend)
    lower.set_xlim(0, 1)
    lower.set_ylim(bottom=0)
    lower.set_xlabel("confidence (highest score)")
    lower.set_ylabel("share of jets")
    figure.align_ylabels()
    return figure


def _confusion(name: str, row: Row) -> Figure:
    """Percent of the jets of each class that got each answer."""
    from matplotlib.figure import Figure

    counts = np.array(row.confusion)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.62 * len(counts)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (i, j), share in np.ndenumerate(shares):
        axis.text(
            j, i, f"{share:.1f}", ha="center", va="center", fontsize="x-small",
            color="white" if share > 55 else "black",
        )  # fmt: skip
    axis.set_xticks(
        range(len(counts)), row.classes, rotation=40, ha="right", rotation_mode="anchor"
    )
    axis.set_yticks(range(len(counts)), row.classes)
    axis.tick_params(which="both", length=0, labelsize="small")
    axis.minorticks_off()
    axis.set_xlabel("answer")
    axis.set_ylabel("true class")
    axis.set_title(_short(name, 50), loc="left", fontsize="small")
    bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02)
    bar.set_label("percent of the true class", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return figure


def _scores(note: str, found: Curves) -> Figure:
    """A panel for each class: its score for jets of the class, of QCD and of all others."""
    figure, axes = panels(len(found.scores), note)
    for axis, (kind, shares) in zip(axes, found.scores.items(), strict=True):
        for label, values in shares.items():
            seen = np.where(values > 0, values, np.nan)
            if label == kind:
                axis.stairs(values, found.edges, label=label, fill=True, color="#b7d5f1")
                axis.stairs(seen, found.edges, baseline=None, color="#1d5a94", linewidth=1.2)
            else:
                style = BACKGROUND_LINE if label == BACKGROUND else OTHERS_LINE
                axis.stairs(seen, found.edges, baseline=None, label=label, **style)
        axis.set_yscale("log")
        lowest = min((v[v > 0].min() for v in shares.values() if v.any()), default=1e-3)
        axis.set_ylim(max(lowest / 2, 1e-6), 4)
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"score of {kind}")
        axis.set_ylabel("share per bin")
        axis.legend(fontsize="x-small", loc="upper center", ncols=3, handlelength=1.6,
                    columnspacing=1.0)  # fmt: skip
    return figure
