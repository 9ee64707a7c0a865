"""The plot of a scan: accuracy, and perhaps a rejection, against the number of labelled jets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jetssl_cli.data.style import line, panels, save, settings
from jetssl_cli.scores.scansummary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*X<>"
LENGTH_OF_ARROW = 0.15
"""Of the value of a lower bound, which an arrow stands on."""


def plot(
    summary: Sequence[Summary], stem: Path, *, note: str, rejection: str | None = None
) -> list[Path]:
    """Draw a line for each backbone and mode, with a band of one standard deviation over seeds.

    Lines differ in dashes and markers as well as in colour.

    Returns:
        The files, PNG and PDF.

    Raises:
        DataError: they cannot be written.
    """
    with settings():
        figure, axes = panels(2 if rejection else 1, note, columns=2 if rejection else 1)
        figure.set_size_inches(6.4 * len(axes), 5.2)
        _draw(axes[0], summary, "accuracy")
        axes[0].set_ylabel("accuracy")
        axes[0].legend(fontsize="small", handlelength=3.6)
        if rejection:
            _draw(axes[1], summary, "rejection")
            axes[1].set_ylabel(f"QCD rejection, {rejection}")
        return save(figure, stem)


def _draw(axis: Axes, summary: Sequence[Summary], what: str) -> None:
    for place, name in enumerate(dict.fromkeys(each.line for each in summary)):
        own = [each for each in summary if each.line == name and getattr(each, what) is not None]
        x = np.array([each.num_jets for each in own])
        y = np.array([getattr(each, what) for each in own], dtype=float)
        error = np.array([getattr(each, f"{what}_std") or 0.0 for each in own])
        bound = np.array([what == "rejection" and each.rejection_bound for each in own], dtype=bool)
        how = line(place)
        axis.fill_between(x, y - error, y + error, color=how["color"], alpha=0.18, linewidth=0)
        axis.errorbar(
            x,
            y,
            yerr=np.where(bound, LENGTH_OF_ARROW * y, error),
            lolims=bound,
            marker=MARKERS[place % len(MARKERS)],
            markersize=6,
            markerfacecolor="white" if place % 2 else how["color"],
            capsize=3,
            elinewidth=0.9,
            label=name,
            **how,
        )
    axis.set_xscale("log")
    axis.set_xlabel("labelled jets")
