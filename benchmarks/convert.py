"""Speed and size of `jetssl convert`, beside merely reading and beside padded arrays.

    python benchmarks/convert.py [FOLDER] [--quick]

FOLDER holds ROOT files of the JetClass schema; the committed sample if not given. On one core, in
turn: (read) uproot, as it comes, reads the branches that the recipe needs; (convert) the
conversion, writing included; (half) the same with float16; (padded) what published code does:
every jet padded to 128 constituents in dense float32 arrays, lifetime signs included, int64
classes, uncompressed. Both for the files as they are and for one of 100,000 jets, the size of a
file of JetClass, into which the same jets are repeated; what a file costs whatever its size weighs
more in small ones. Then, on two cores, sixteen files of that size with one and with two jobs.

Bars, for the file of JetClass's size: convert >= 60 % of the speed of read and >= 2.5 times that of
padded; at most a quarter, with --half a seventh, of the 4,788 bytes a jet that padded files take;
two jobs >= 1.8 times one.
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

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.converted import convert_file
from jetssl_cli.data.jagged import Precision
from jetssl_cli.data.recipe import Recipe, load_recipe

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "jetclass" / "train"
PADDED_BYTES = 4788
PAD = 128
JETS = 100_000
FILES_FOR_JOBS = 16


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
    d0, dz = (dense(arrays[f"part_{name}"]) for name in ("d0val", "dzval"))
    phi_b = phi - np.float32(np.pi / 2)
    b = np.stack([d0 * np.cos(phi_b), d0 * np.sin(phi_b), dz], axis=-1)
    track = np.stack([px, py, pz], axis=-1)
    jet = np.stack([np.cos(jet_phi), np.sin(jet_phi), np.sinh(jet_eta)], axis=-1)
    sign = (np.cross(jet, track) * np.cross(track, -b)).sum(axis=-1)
    csts[..., 3] = np.abs(d0) * np.where(sign < 0, -1, 1)
    csts[..., 5] = np.abs(dz) * np.where(dz * (jet_eta - eta) < 0, -1, 1)
    jets = np.stack([arrays[str(c.branch)].to_numpy() for c in recipe.jets.values()], axis=-1)
    labels = np.stack([arrays[f"label_{name}"].to_numpy() for name in recipe.labels.classes], -1)
    with h5py.File(out, "w") as file:
        file["csts"], file["csts_id"], file["mask"] = csts, ids.astype(np.int64), mask
        file["jets"], file["labels"] = jets.astype(np.float32), labels.argmax(-1)
    return len(jets)


def repeat(paths: list[Path], out: Path) -> Path:
    """One file of 100,000 jets: the jets of all files, mixed, again and again."""
    parts = [uproot.open(path)["tree"] for path in paths]
    names = [name for name in parts[0].keys() if not name.startswith("npart_")]  # noqa: SIM118
    jets = ak.concatenate([tree.arrays(names) for tree in parts])
    rng = np.random.default_rng(0)
    with uproot.recreate(out) as file:
        tree = file.mktree("tree", {name: jets[name].type.content for name in names})
        for start in range(0, JETS, 10_000):
            chosen = jets[rng.integers(len(jets), size=min(10_000, JETS - start))]
            tree.extend({name: ak.to_packed(chosen[name]) for name in names})
    return out


def one_core(paths: list[Path], out: Path, repeats: int) -> dict[str, float]:
    """Median seconds of each way to go through the files, and bytes a jet of those converted."""
    recipe = load_recipe("jetclass")
    made = {
        (path, precision): out / f"{path.stem}-{precision}.h5"
        for path in paths
        for precision in ("float32", "float16")
    }

    def converted(path: Path, precision: Precision) -> None:
        convert_file(path, made[path, precision], recipe, precision, overwrite=True)

    ways: dict[str, Callable[[Path], object]] = {
        "read": lambda path: read(path, recipe),
        "convert": lambda path: converted(path, "float32"),
        "half": lambda path: converted(path, "float16"),
        "padded": lambda path: pad(path, recipe, out / "padded.h5"),
    }
    zlib = uproot.compression._decompress_ZLIB
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, work in ways.items():
            zlib.library = "zlib" if way in ("read", "padded") else "isal"
            start = time.perf_counter()
            for path in paths:
                work(path)
            seconds[way].append(time.perf_counter() - start)
    zlib.library = "isal"
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    jets = sum(read(path, recipe) for path in paths)
    table = Table("", "median s", "jets/s", title=f"{jets:,} jets, files: {len(paths)}")
    for way, median in medians.items():
        table.add_row(way, f"{median:.2f}", f"{jets / median:,.0f}")
    Console().print(table)
    sizes = dict.fromkeys(("float32", "float16"), 0.0)
    for (_, precision), path in made.items():
        sizes[precision] += path.stat().st_size / jets
    return {
        "jets_per_second": jets / medians["convert"],
        "ratio_to_read": medians["read"] / medians["convert"],
        "ratio_to_padded": medians["padded"] / medians["convert"],
        "bytes_per_jet": sizes["float32"],
        "bytes_per_jet_half": sizes["float16"],
    }


def two_jobs(path: Path, out: Path, repeats: int) -> float:
    """How much faster two jobs are than one."""
    (out / "many").mkdir()
    for copy in range(FILES_FOR_JOBS):
        (out / "many" / f"{copy}.root").hardlink_to(path)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for jobs, times in seconds.items():
            cfg = ConvertConfig(
                sources=(out / "many",),
                recipe=load_recipe("jetclass"),
                out=out / "made",
                jobs=jobs,
                overwrite=True,
            )
            start = time.perf_counter()
            convert(cfg)
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[1]) / statistics.median(seconds[2])


def main() -> int:
    """Measure, print two tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--quick", action="store_true", help="three repetitions, not five")
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.root"))
    repeats = 3 if options.quick else 5
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        large = repeat(paths, out / "large.root")
        os.sched_setaffinity(0, {min(cores)})
        as_they_are = one_core(paths, out, repeats)
        figures = one_core([large], out, repeats)
        os.sched_setaffinity(0, cores)
        figures["two_jobs"] = two_jobs(large, out, 3)
    missed = [
        bar
        for bar, met in {
            "ratio_to_read >= 0.6": figures["ratio_to_read"] >= 0.6,
            "ratio_to_padded >= 2.5": figures["ratio_to_padded"] >= 2.5,
            "bytes_per_jet <= 1197": figures["bytes_per_jet"] <= PADDED_BYTES / 4,
            "bytes_per_jet_half <= 684": figures["bytes_per_jet_half"] <= PADDED_BYTES / 7,
            "two_jobs >= 1.8": figures["two_jobs"] >= 1.8,
        }.items()
        if not met
    ]
    print(
        json.dumps(
            {**figures, "files_as_they_are": as_they_are, "holds": not missed, "missed": missed}
        )
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
