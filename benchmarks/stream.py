"""Reading: the shuffling stream against bare h5py, and a whole input pipeline against a padded one.

    python benchmarks/stream.py [--quick] [--half]

Jets of the committed sample, repeated with noise and shuffled, lie in one file. One core, batches
of 1,000 jets. Bars: packed batches come from the shuffling stream at 50 % of the rate at which h5py
reads all arrays in order; with scaling and masking they come 5 times as fast as in a pipeline that
reads in order, pads to 64 constituents, scales with scikit-learn and draws the mask of each jet in
a loop.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.preprocessing import QuantileTransformer

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile, Precision
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.scaling import Scaling, fit_scaling
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.write import write
from jetssl_cli.objectives.masking import random_mask

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "jetclass" / "train"
JETS, BATCH, CHUNK, CONSTITUENTS, SHARE = 64_000, 1_000, 10_000, 64, 0.5
BAR_READ, BAR_PIPELINE = 0.5, 5.0
ARRAYS = ("offsets", "jets/features", "jets/labels", "constituents/id", "constituents/features")


def make(folder: Path, precision: Precision) -> tuple[Path, JetArrays]:
    """A file of shuffled jets, and some of them."""
    recipe = load_recipe("jetclass")
    cfg = ConvertConfig(sources=(SAMPLE,), recipe=recipe, out=folder / "sample", jobs=1)
    parts = []
    for file in convert(cfg).files:
        with JaggedFile(file.output) as jagged:
            parts.append(jagged.read())
    jets = concatenate(parts)
    rng = np.random.default_rng(0)
    left, path = JETS, folder / "jets.h5"
    with write(path, recipe, ["sample"], precision=precision) as writer:
        while left:
            chosen = jets.take(rng.permutation(len(jets))[:left])
            noise = rng.normal(1, 1e-3, chosen.features.shape).astype(np.float32)
            writer.append(replace(chosen, features=(chosen.features * noise).astype(precision)))
            left -= len(chosen)
    return path, jets


def bare(path: Path) -> None:
    """Every array of the file in order, in chunks of jets."""
    with h5py.File(path) as file:
        for start in range(0, JETS, CHUNK):
            offsets = file["offsets"][start : start + CHUNK + 1]
            for name in ARRAYS[1:]:
                of_jets = name.startswith("jets/")
                first, last = (start, start + CHUNK) if of_jets else (offsets[0], offsets[-1])
                file[name][first:last]


def streamed(path: Path) -> None:
    """One epoch of packed batches, shuffled."""
    stream = JetStream([path], batch_size=BATCH, max_constituents=CONSTITUENTS)
    for _ in itertools.islice(stream.forever(0), JETS // BATCH):
        pass


def packed(path: Path, scaling: Scaling) -> None:
    """One epoch of packed batches, shuffled, scaled and masked."""
    stream = JetStream([path], batch_size=BATCH, max_constituents=CONSTITUENTS)
    rng = torch.Generator().manual_seed(0)
    for batch in itertools.islice(stream.forever(0), JETS // BATCH):
        scaled = scaling(batch)
        random_mask(scaled.packing, SHARE, rng)


def padded(path: Path, of_constituents: QuantileTransformer, of_jets: QuantileTransformer) -> None:
    """The same jets in the order of the file, padded, scaled and masked."""
    rng = np.random.default_rng(0)
    with h5py.File(path) as file:
        for start in range(0, JETS, BATCH):
            offsets = file["offsets"][start : start + BATCH + 1]
            rows = slice(offsets[0], offsets[-1])
            sizes = np.minimum(np.diff(offsets), CONSTITUENTS)
            real = np.arange(CONSTITUENTS) < sizes[:, None]
            features = fill(file["constituents/features"][rows], offsets, real)
            fill(file["constituents/id"][rows], offsets, real)
            scaled = of_constituents.transform(features.reshape(-1, features.shape[-1]))
            torch.from_numpy(scaled.reshape(features.shape).astype(np.float32))
            torch.from_numpy(of_jets.transform(file["jets/features"][start : start + BATCH]))
            file["jets/labels"][start : start + BATCH]
            hidden = np.zeros(real.shape, bool)
            for jet, size in enumerate(sizes):
                hidden[jet, rng.permutation(size)[: int(SHARE * size)]] = True
            torch.from_numpy(hidden)


def fill(values: NDArray, offsets: NDArray, real: NDArray) -> NDArray:
    """Each jet filled up with zeros to 64 constituents."""
    table = np.zeros((*real.shape, *values.shape[1:]), np.float32)
    rows = (offsets[:-1, None] - offsets[0]) + np.arange(CONSTITUENTS)
    table[real] = values[rows[real]]
    return table


def alternate(repeats: int, *runs: Callable[[], None]) -> list[list[float]]:
    """Seconds of each call, in turn, after one warm-up of all."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, seconds in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return [seconds[1:] for seconds in times]


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repetitions, not 5")
    parser.add_argument("--half", action="store_true", help="features in float16")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    precision: Precision = "float16" if options.half else "float32"
    with tempfile.TemporaryDirectory() as name:
        path, jets = make(Path(name), precision)
        with JaggedFile(path) as file:
            mean = file.num_constituents / JETS
            scaling = fit_scaling(file.schema, [jets.first(CONSTITUENTS)])
        settings = {"n_quantiles": 500, "output_distribution": "normal"}
        fits = [QuantileTransformer(**settings).fit(table) for table in (jets.features, jets.jets)]
        runs: dict[str, Callable[[], None]] = {
            "bare h5py, in order": lambda: bare(path),
            "stream": lambda: streamed(path),
            "stream, scaled, masked": lambda: packed(path, scaling),
            "padded, scikit-learn, loop": lambda: padded(path, *fits),
        }
        times = alternate(3 if options.quick else 5, *runs.values())
    table = Table("", "median s", "jets/s", title=f"{JETS:,} jets, {precision}, one core")
    for name, seconds in zip(runs, times, strict=True):
        median = statistics.median(seconds)
        table.add_row(name, f"{median:.3f}", f"{JETS / median:,.0f}")
    Console().print(table)
    read = statistics.median(a / b for a, b in zip(times[0], times[1], strict=True))
    pipeline = statistics.median(a / b for a, b in zip(times[3], times[2], strict=True))
    holds = read >= BAR_READ and pipeline >= BAR_PIPELINE
    figures = {
        "precision": precision,
        "stream_jets_per_second": JETS / statistics.median(times[1]),
        "ratio_to_h5py": read,
        "bar_h5py": BAR_READ,
        "ratio_to_padded": pipeline,
        "bar_padded": BAR_PIPELINE,
        "mean_constituents": mean,
    }
    print(json.dumps({**figures, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
