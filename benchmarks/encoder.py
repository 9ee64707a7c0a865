"""Packed against padded: one encoder, one batch, forward and backward, on the CPU.

    python benchmarks/encoder.py [--quick]

The baseline pads every jet of the committed sample to 64 constituents, as dense code does; both
sides run the same weights through the same code. Bar: packed is at least 1.15 times as fast.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.scaling import fit_scaling
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.runs.pretrain import build_encoder

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "jetclass" / "train"
JETS, CONSTITUENTS, BAR = 250, 64, 1.15


def all_jets() -> tuple[JetArrays, Schema]:
    """The jets of the sample, of all classes in random order, and their schema."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = ConvertConfig(
            sources=(SAMPLE,), recipe=load_recipe("jetclass"), out=Path(folder), jobs=1
        )
        files = [JaggedFile(file.output) for file in convert(cfg).files]
        jets = concatenate([file.read() for file in files])
        schema = files[0].schema
    return jets.take(np.random.default_rng(0).permutation(len(jets))), schema


def pad(source: JetArrays) -> JetArrays:
    """The same jets, each filled up to 64 constituents."""
    rank = np.minimum(np.arange(CONSTITUENTS), source.sizes[:, None] - 1)
    rows = (source.offsets[:-1, None] + rank).ravel()
    sizes = np.full(len(source), CONSTITUENTS)
    return JetArrays(
        source.features[rows],
        source.ids[rows],
        source.truth[rows],
        sizes,
        source.jets,
        source.labels,
    )


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    repeats = 5 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    torch.manual_seed(0)
    jets, schema = all_jets()
    packed = jets.between(0, JETS).first(CONSTITUENTS)
    encoder = build_encoder(
        EncoderConfig(width=128, depth=4, heads=4), fit_scaling(schema, [packed]), schema
    )

    def step(batch: JetBatch) -> Callable[[], None]:
        return lambda: encoder(batch).tokens.square().mean().backward()

    times = alternate(step(to_batch(packed)), step(to_batch(pad(packed))), repeats)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    table = Table("path", "median s", "jets/s", title=f"encoder step, {JETS} jets, one core")
    for name, seconds in zip(("packed", "padded to 64"), times, strict=True):
        median = statistics.median(seconds)
        table.add_row(name, f"{median:.3f}", f"{JETS / median:.0f}")
    Console().print(table)
    figures = {
        "jets_per_second": JETS / statistics.median(times[0]),
        "ratio": ratio,
        "bar": BAR,
        "mean_constituents": len(packed.ids) / JETS,
    }
    print(json.dumps({**figures, "holds": ratio >= BAR}))
    return 0 if ratio >= BAR else 1


def alternate(
    one: Callable[[], None], other: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call, in turn, after one warm-up of both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for run, seconds in zip((one, other), times, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return times[0][1:], times[1][1:]


if __name__ == "__main__":
    sys.exit(main())
