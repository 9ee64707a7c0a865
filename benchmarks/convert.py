"""Speed and size of `jetssl convert`, beside merely reading and beside padded arrays.

    python benchmarks/convert.py [FOLDER] [--quick]

FOLDER holds ROOT files of the JetClass schema; the committed sample if not given. On one core, in
turn: (read) uproot reads the branches that the recipe needs; (convert) the conversion, writing
included; (padded) what published code does: every jet padded to 128 constituents in dense float32
arrays, int64 classes, uncompressed. Bars: convert >= 60 % of the speed of read and >= 2.5 times
that of padded, and at most a quarter of the 4,788 bytes a jet that padded files take (on files of
1,000 jets and more; the smaller ones of the sample are dominated by HDF5's own overhead).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import uproot
from rich.console import Console
from rich.table import Table

from jetssl_cli.data.convert import convert_file
from jetssl_cli.data.recipe import Recipe, load_recipe

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "jetclass" / "train"
PADDED_BYTES = 4788
PAD = 128


def read(path: Path, recipe: Recipe) -> int:
    """Read the branches, and nothing else."""
    with uproot.open(path) as file:
        return len(file[recipe.tree].arrays(recipe.branches, how=dict)["jet_pt"])


def pad(path: Path, recipe: Recipe, out: Path) -> int:
    """Dense arrays, the straightforward way."""
    with uproot.open(path) as file:
        arrays = file[recipe.tree].arrays(recipe.branches)

    def dense(branch: ak.Array) -> np.ndarray:
        return ak.to_numpy(ak.fill_none(ak.pad_none(branch, PAD, clip=True), 0)).astype(np.float32)

    px, py, pz = (dense(arrays[f"part_p{axis}"]) for axis in "xyz")
    mask = dense(ak.ones_like(arrays.part_px)) > 0
    pt = np.hypot(px, py)
    eta = np.arcsinh(pz / np.where(mask, pt, 1))
    phi = np.arctan2(py, px)
    jet_eta, jet_phi = (arrays[name].to_numpy()[:, None] for name in ("jet_eta", "jet_phi"))
    csts = np.stack(
        [
            pt,
            eta - jet_eta,
            (phi - jet_phi + np.pi) % (2 * np.pi) - np.pi,
            *(dense(arrays[f"part_{name}"]) for name in ("d0val", "d0err", "dzval", "dzerr")),
        ],
        axis=-1,
    ) * mask[..., None].astype(np.float32)
    kinds = ("isPhoton", "isChargedHadron", "isNeutralHadron", "isElectron", "isMuon")
    ids = np.stack([dense(arrays[f"part_{kind}"]) for kind in kinds], axis=-1).argmax(-1)
    jets = np.stack([arrays[str(c.branch)].to_numpy() for c in recipe.jets.values()], axis=-1)
    labels = np.stack([arrays[f"label_{name}"].to_numpy() for name in recipe.labels.classes], -1)
    with h5py.File(out, "w") as file:
        file["csts"], file["csts_id"], file["mask"] = csts, ids.astype(np.int64), mask
        file["jets"], file["labels"] = jets.astype(np.float32), labels.argmax(-1)
    return len(jets)


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--quick", action="store_true", help="three repetitions, not five")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    recipe = load_recipe("jetclass")
    paths = sorted(options.folder.glob("*.root"))
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        ways: dict[str, Callable[[Path], object]] = {
            "read": lambda path: read(path, recipe),
            "convert": lambda path: convert_file(path, out / f"{path.stem}.h5", recipe, True),
            "padded": lambda path: pad(path, recipe, out / "padded.h5"),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range((3 if options.quick else 5) + 1):
            for way, work in ways.items():
                start = time.perf_counter()
                for path in paths:
                    work(path)
                seconds[way].append(time.perf_counter() - start)
        num_jets = sum(read(path, recipe) for path in paths)
        size = sum((out / f"{path.stem}.h5").stat().st_size for path in paths) / num_jets
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    table = Table("", "median s", "jets/s", title=f"{num_jets:,} jets of {len(paths)} files")
    for way, median in medians.items():
        table.add_row(way, f"{median:.2f}", f"{num_jets / median:,.0f}")
    Console().print(table)
    figures = {
        "jets_per_second": num_jets / medians["convert"],
        "ratio_to_read": medians["read"] / medians["convert"],
        "ratio_to_padded": medians["padded"] / medians["convert"],
        "bytes_per_jet": size,
    }
    large = num_jets / len(paths) >= 1000
    holds = (
        figures["ratio_to_read"] >= 0.6
        and figures["ratio_to_padded"] >= 2.5
        and (size <= PADDED_BYTES / 4 or not large)
    )
    print(json.dumps({**figures, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
