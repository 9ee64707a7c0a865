"""One HTML page with all tables and plots: it needs no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from jetssl_cli import __version__
from jetssl_cli.data.style import render
from jetssl_cli.progress import Advance
from jetssl_cli.scores.cells import (
    bold,
    columns,
    comparison_notes,
    comparisons,
    confusions,
    notes,
)
from jetssl_cli.scores.rows import Row, run_names
from jetssl_cli.scores.tables import write_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "roc": "Rejection of the background against the efficiency of each signal. Bands: one standard "
    "deviation, binomial, at a fixed cut. Markers: the working points of the table.",
    "calibration": "Share of right answers by their confidence, and the jets in each bin.",
    "confusion": "Answers to the jets of each class.",
    "scores": "Score of each class, for its own jets, for those of QCD and for all others.",
}
STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2430; --soft: #5d6675;
  --line: #d9dce1; --best: #eaf2fb; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 88rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem; }
p { margin: .4rem 0; max-width: 60rem; }
.soft, summary, figcaption { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
tbody tr + tr td { border-top: 1px solid var(--line); }
td.best { font-weight: 700; background: var(--best); }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; mix-blend-mode: multiply; }
figcaption { margin-top: .4rem; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e4e7ec; --soft: #9aa3b2; --line: #333a45; --best: #1d2c40; }
  img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; } }
.narrow img { max-width: min(100%, 40rem); }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(
    rows: Sequence[Row],
    figures: Mapping[str, Figure],
    path: Path,
    advance: Advance = lambda *_: None,
) -> None:
    """Write the page; it appears under its name only when it is complete.

    ``advance`` is told of each figure.

    Raises:
        DataError: it cannot be written.
    """
    write_all(path.parent, {path.name: page(rows, figures, advance)})


def page(rows: Sequence[Row], figures: Mapping[str, Figure], advance: Advance) -> str:
    """The page as a text; the figures are those of ``plots.draw``."""
    names = run_names(rows)
    title = f"Evaluation of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    files = [file for row in rows for file in row.seeds or (row.scores,)]
    made = f"jetssl {__version__}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(made)}.</p>',
        f"<details><summary>{len(files)} score files</summary>",
        f'<p class="soft">{escape(", ".join(files))}</p></details>',
        "<h2>Figures</h2>",
        _table(columns(rows), bold(rows)),
        *(f'<p class="soft">{escape(note)}</p>' for note in notes(rows)),
    ]
    if compared := comparisons(rows):
        parts += ["<h2>Comparison</h2>", _table(compared, [])]
        parts += [f'<p class="soft">{escape(note)}</p>' for note in comparison_notes(compared)]
    drawn = []
    for stem, figure in figures.items():
        drawn.append(_figure(stem, figure))
        advance(1)
    roc, calibration, *each = drawn
    parts += ["<h2>ROC curves</h2>", roc, "<h2>Calibration</h2>", calibration]
    for place, (name, (heading, matrix)) in enumerate(zip(names, confusions(rows), strict=True)):
        parts += [f"<h2>{escape(name)}</h2>", *each[2 * place : 2 * place + 2]]
        parts += [f"<h3>{escape(heading)}</h3>", _table(matrix, [])]
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(parts))


def _table(columns: list[list[str]], best: list[list[bool]]) -> str:
    header, *lines = zip(*columns, strict=True)
    flags = list(zip(*best, strict=True))[1:] or [(False,) * len(header)] * len(lines)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{' class=best' * flag}>{escape(cell).replace(' (p', '<br>(p')}</td>"
            for cell, flag in zip(line, marked, strict=True)
        )
        + "</tr>"
        for line, marked in zip(lines, flags, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _figure(stem: str, figure: Figure) -> str:
    """An SVG inside the page."""
    drawn = io.BytesIO()
    render(figure, drawn, "svg", metadata={"Date": None})
    data = base64.b64encode(drawn.getvalue()).decode()
    caption = CAPTIONS[stem.partition("_")[0]]
    narrow = "" if stem.startswith(("roc", "scores")) else ' class="narrow"'
    return (
        f'<figure{narrow}><img src="data:image/svg+xml;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
