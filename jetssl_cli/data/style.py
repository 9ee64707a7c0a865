"""How all figures look: the style of mplhep, lines that differ without colour, PNG and PDF.

Figures are drawn without pyplot, so that neither a display nor ``MPLBACKEND`` matters. Settings in
a matplotlibrc of the user's own win over the style.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetssl_cli.errors import DataError, reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#3f90da", "#bd1f01", "#ffa90e", "#832db6", "#717581",
    "#e76300", "#2b6b4f", "#a96b59", "#000000", "#94a4a2",
)  # fmt: skip
"""Those of M. Petroff (arXiv:2107.02270), two of them darker."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1)))
"""With two widths, ten lines that differ without colour; with colour, fifty."""
STYLE = {
    "font.size": 13, "axes.linewidth": 1, "lines.linewidth": 1.4,
    "xtick.major.size": 6, "xtick.minor.size": 3, "ytick.major.size": 6, "ytick.minor.size": 3,
    "savefig.dpi": 150,
}  # fmt: skip


@contextmanager
def settings() -> Iterator[None]:
    """The style, and over it what a matplotlibrc of the user's own sets."""
    import matplotlib as mpl
    import mplhep

    own = Path(mpl.matplotlib_fname())
    chosen: Any = {**mplhep.style.ROOT, **STYLE}
    if not own.is_relative_to(mpl.get_data_path()):
        chosen |= mpl.rc_params_from_file(own, use_default_template=False)
        chosen.pop("backend", None)
    with mpl.rc_context(chosen):
        yield


def line(place: int) -> dict[str, Any]:
    """How the line of this number is drawn."""
    wide = place // len(DASHES) % 2
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[(place + place // len(COLOURS)) % len(DASHES)],
        "linewidth": (1.3, 2.2)[wide],
    }


def panels(count: int, note: str, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, rather wide than high, and a small note below them."""
    from matplotlib.figure import Figure

    columns = columns or max(2, round(math.sqrt(1.5 * count)))
    rows = -(-count // columns)
    figure = Figure(figsize=(4.3 * columns, 3.7 * rows + 0.4), layout="constrained")
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    figure.supxlabel(note, fontsize="x-small", color="0.35", x=0.01, ha="left")
    return figure, axes


def legend(axis: Axes, source: Axes, title: str) -> None:
    """Give a cell of the grid to the legend of another panel."""
    axis.set_axis_off()
    handles, labels = source.get_legend_handles_labels()
    axis.legend(
        handles,
        labels,
        title=title,
        loc="center",
        handlelength=3.2,
        fontsize="small",
        alignment="left",
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and as PDF.

    Raises:
        DataError: the files cannot be written.
    """
    paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")}
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for kind, path in paths.items():
            render(figure, path, kind)
    except OSError as err:
        raise DataError(f"{stem.parent}: cannot be written: {reason(err)}") from None
    return list(paths.values())


def render(
    figure: Figure, target: Path | BytesIO, kind: str, metadata: dict[str, Any] | None = None
) -> None:
    """Write a figure as ``png``, ``pdf`` or ``svg``; it is laid out once for all of them.

    What ``savefig`` writes, which lays out and draws everything a second time for each file. Of the
    settings of a matplotlibrc that begin with ``savefig`` only the resolution counts.
    """
    import matplotlib as mpl
    from matplotlib.backend_bases import get_registered_canvas_class
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    dpi = mpl.rcParams["savefig.dpi"]
    figure.dpi = mpl.rcParams["figure.dpi"] if dpi == "figure" else dpi
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    canvas = get_registered_canvas_class(kind)(figure)
    getattr(canvas, f"print_{kind}")(target, metadata=metadata)
