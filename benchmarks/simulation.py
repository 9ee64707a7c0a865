"""Simulated jets beside those of the real JetClass, and beside what physics says.

    python benchmarks/simulation.py FOLDER QUANTILES.csv

FOLDER holds ROOT files of the ten processes as `jetssl simulate jetclass` makes them, with equally
many jets each; QUANTILES.csv the quantiles of the real training set (first 64 constituents of a
jet; impact parameters of charged ones only). Prints Markdown tables: quantiles, simulated against
real; fitted peaks of the groomed mass; multiplicities; tails of the signed d0 significance. Bars:
every quantile within 20 %; peaks of two-prong bosons within 5 GeV of the mass; gluons have more
constituents than quarks; the tail of Hbb is larger than that of Hcc, that larger than that of Hgg.
The last line is JSON; exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.physics import NEUTRAL_CLASSES

PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
MOST = 64
SIGNED = ("deta", "dphi", "d0", "dz", "jet_eta")
COLUMNS = (
    "pt", "deta", "dphi", "d0", "d0_err", "dz", "dz_err",
    "jet_pt", "jet_eta", "jet_sdmass", "num_constituents",
)  # fmt: skip
BAR = 0.2
MASSES = {"Wqq": 80.4, "Zqq": 91.2, "Hbb": 125.0, "Hcc": 125.0, "Hgg": 125.0, "Tbqq": 172.5}
"""[GeV]; Particle Data Group, and what Pythia assumes of the Higgs boson and the top."""
TWO_PRONGS = ("Wqq", "Zqq", "Hbb", "Hcc", "Hgg")
TAIL = 5.0
"""Signed d0 in units of its resolution beyond which a track counts as displaced."""
HARDEST = 20
"""Of so many hardest constituents, the tracks are looked at: displaced K0S and Lambda are soft."""


def read(folder: Path) -> tuple[JetArrays, list[str], tuple[str, ...]]:
    """Jets of all files, their columns, their classes."""
    recipe = load_recipe("jetclass")
    with tempfile.TemporaryDirectory() as name:
        report = convert(ConvertConfig(sources=(folder,), recipe=recipe, out=Path(name)))
        parts = []
        for made in report.files:
            with JaggedFile(made.output) as file:
                parts.append(file.read())
                schema = file.schema
    names = [feature.name for feature in (*schema.constituents, *schema.jets)]
    return concatenate(parts), names, tuple(schema.classes)


def columns_of(jets: JetArrays, names: list[str]) -> dict[str, np.ndarray]:
    """Values of each column, as those of the file of quantiles are."""
    starts = np.cumsum(jets.sizes) - jets.sizes
    place = np.arange(len(jets.ids)) - np.repeat(starts, jets.sizes)
    first, charged = place < MOST, ~np.isin(jets.ids, NEUTRAL_CLASSES)
    values = {}
    for index, name in enumerate(names):
        if index < jets.features.shape[1]:
            keep = first & charged if name.startswith(("d0", "dz")) else first
            values[name] = jets.features[keep, index]
        else:
            values[name] = jets.jets[:, index - jets.features.shape[1]]
        if name in SIGNED:
            values[name] = np.abs(values[name])
    return values


def real_quantiles(path: Path) -> dict[str, np.ndarray]:
    """Quantiles of the real data; of signed columns those of the absolute value."""
    table = np.genfromtxt(path, delimiter=",", names=True)
    found = {}
    for name in COLUMNS:
        grid = np.linspace(0, 1, 100_001)
        values = np.interp(grid, table["probability"], table[name])
        found[name] = np.quantile(np.abs(values) if name in SIGNED else values, PROBABILITIES)
    return found


def peak(mass: np.ndarray, near: float) -> float:
    """Mean [GeV] of a Gaussian fitted, again and again, to 1.5 standard deviations of its core."""
    mean, width = near, 15.0
    for _ in range(50):
        core = mass[np.abs(mass - mean) < 1.5 * width]
        if len(core) < 10:
            return float("nan")
        mean, width = float(core.mean()), float(core.std() / 0.743)  # of a Gaussian cut at 1.5
        width = min(width, 15.0)
    return mean


def compare(jets: JetArrays, names: list[str], path: Path) -> list[str]:
    """Print the table of quantiles; the quantiles beyond the bar."""
    found, real = columns_of(jets, names), real_quantiles(path)
    missed = []
    print("| | " + " | ".join(f"{100 * p:.0f} %" for p in PROBABILITIES) + " |")
    print("|---|" + "---|" * len(PROBABILITIES))
    for name in COLUMNS:
        ours = np.quantile(found[name], PROBABILITIES)
        cells = []
        for p, a, b in zip(PROBABILITIES, ours, real[name], strict=True):
            off = a / b - 1
            bad = abs(off) > BAR
            missed += [f"{name} {100 * p:.0f} % {off:+.0%}"] if bad else []
            cells.append(f"{a:.3g} / {b:.3g}" + (f" (**{off:+.0%}**)" if bad else ""))
        label = f"\\|{name}\\|" if name in SIGNED else name
        print(f"| {label} | " + " | ".join(cells) + " |")
    return missed


def physics(jets: JetArrays, names: list[str], classes: tuple[str, ...]) -> dict[str, dict]:
    """Print peaks, multiplicities and tails of each class."""
    num = jets.features.shape[1]
    mass, count = (jets.jets[:, names.index(n) - num] for n in ("jet_sdmass", "num_constituents"))
    owner = np.repeat(jets.labels, jets.sizes)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(jets.sizes) - jets.sizes, jets.sizes)
    d0, error = (jets.features[:, names.index(n)] for n in ("d0", "d0_err"))
    track = (place < HARDEST) & ~np.isin(jets.ids, NEUTRAL_CLASSES)
    figures: dict[str, dict] = {}
    print("\n| class | groomed mass, peak [GeV] | constituents, mean | d0/d0_err > 5 | < -5 |")
    print("|---|---|---|---|---|")
    for label, name in enumerate(classes):
        here = jets.labels == label
        tracks = track & (owner == label)
        significance = d0[tracks] / error[tracks]
        figures[name] = {
            "peak": peak(mass[here], MASSES[name]) if name in MASSES else None,
            "constituents": float(count[here].mean()),
            "positive": float((significance > TAIL).mean()),
            "negative": float((significance < -TAIL).mean()),
        }
        f = figures[name]
        shown = f"{f['peak']:.1f} (true {MASSES[name]})" if f["peak"] is not None else ""
        print(f"| {name} | {shown} | {f['constituents']:.1f} | {f['positive']:.2%} | "
              f"{f['negative']:.2%} |")  # fmt: skip
    return figures


def main() -> int:
    """Print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("quantiles", type=Path)
    options = parser.parse_args()
    jets, names, classes = read(options.folder)
    print(f"{len(jets):,} jets; quantiles simulated / real\n")
    missed = compare(jets, names, options.quantiles)
    found = physics(jets, names, classes)
    order = [found[name]["positive"] for name in ("Hbb", "Hcc", "Hgg")]
    many = {name: found[name]["constituents"] for name in ("Hgg", "Hcc", "Hbb", "Wqq", "Zqq")}
    bars = {
        **{f"peak of {name}": abs(found[name]["peak"] - MASSES[name]) <= 5 for name in TWO_PRONGS},
        "tails Hbb > Hcc > Hgg": order[0] > order[1] > order[2],
        "gluons have more constituents": many["Hgg"] == max(many.values()),
    }
    missed += [bar for bar, met in bars.items() if not met]
    print("\n" + json.dumps({"jets": len(jets), **found, "holds": not missed, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
