"""Figures are written as matplotlib's own ``savefig`` writes them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jetssl_cli.data.style import panels, render, settings


@pytest.fixture
def figure() -> Iterator[Figure]:
    with settings():
        made, axes = panels(3, "a note")
        for axis, power in zip(axes, (1, 3, 6), strict=True):
            axis.plot(np.arange(1, 9) ** power, label=f"power {power}")
            axis.set_yscale("log")
            axis.set_ylabel("value")
            axis.legend()
        yield made


def written(figure: Figure, kind: str) -> bytes:
    target = io.BytesIO()
    render(figure, target, kind)
    return target.getvalue()


@pytest.mark.parametrize("dpi", [150, 50, "figure"])
def test_pixels_are_those_of_savefig(figure: Figure, dpi: int | str) -> None:
    mpl.rcParams["savefig.dpi"] = dpi
    found = written(figure, "png")
    wanted = io.BytesIO()
    figure.savefig(wanted, format="png")
    assert found == wanted.getvalue()


def test_all_formats_have_one_layout_and_one_size(
    figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, to: drawn.append(self) or draw(self, to))
    before = [axis.get_position().bounds for axis in figure.axes]
    pdf, svg, png = (written(figure, kind) for kind in ("pdf", "svg", "png"))
    assert drawn == [figure] * 4  # once to be laid out
    assert before != [axis.get_position().bounds for axis in figure.axes]
    inches = figure.get_size_inches()
    width, height = inches * 72
    assert f"/MediaBox [ 0 0 {width:g} {height:g} ]".encode() in pdf
    assert f'viewBox="0 0 {width:g} {height:g}"'.encode() in svg
    shape = mpl.image.imread(io.BytesIO(png)).shape[:2]
    assert shape == tuple((inches[::-1] * 150).astype(int))
