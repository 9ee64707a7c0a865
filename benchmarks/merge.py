"""Shuffling more than fits: memory and speed of `jetssl merge`.

    python benchmarks/merge.py [--quick]

Jets of the committed sample, repeated with noise, are written to a few files, ten times as large in
memory as the limit given (with --quick three times). Bars: the peak memory of the whole process
stays under the limit, and merging runs at 25 % of the speed of a plain copy through h5py, its
verification included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table
from watch import watch

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import concatenate
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.write import write

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "jetclass" / "train"
LIMIT = 256 * 2**20
FILES = 4
BAR = 0.25


def make(folder: Path, times: float) -> int:
    """Write files that take ``times`` the limit in memory together; the number of jets."""
    recipe = load_recipe("jetclass")
    report = convert(ConvertConfig(sources=(SAMPLE,), recipe=recipe, out=folder / "sample"))
    parts = []
    for file in report.files:
        with JaggedFile(file.output) as jagged:
            parts.append(jagged.read())
    jets = concatenate(parts)
    shutil.rmtree(folder / "sample")
    size = jets.features.nbytes + jets.ids.nbytes + jets.jets.nbytes + 10 * len(jets)
    rng = np.random.default_rng(0)
    repeats = round(times * LIMIT / size / FILES)
    for number in range(FILES):
        with write(folder / f"{number}.h5", recipe, ["sample"]) as writer:
            for _ in range(repeats):
                noise = rng.normal(1, 1e-3, jets.features.shape).astype(np.float32)
                writer.append(replace(jets, features=jets.features * noise))
    return FILES * repeats * len(jets)


def copy(folder: Path, out: Path) -> float:
    """Seconds that it takes to read every array in order and write it with the same filters."""
    start = time.perf_counter()
    with h5py.File(out, "w") as target:
        for path in sorted(folder.glob("*.h5")):
            with h5py.File(path) as source:
                for name in ("offsets", "jets/features", "jets/labels", "constituents/id",
                             "constituents/features"):  # fmt: skip
                    data = source[name]
                    like = {"chunks": data.chunks, "compression": "gzip", "compression_opts": 1}
                    made = target.create_dataset(
                        f"{path.stem}/{name}", data.shape, data.dtype, **like
                    )
                    step = data.chunks[0] * 8
                    for first in range(0, len(data), step):
                        made[first : first + step] = data[first : first + step]
    return time.perf_counter() - start


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three times the limit, not ten")
    times = 3 if parser.parse_args().quick else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_jets = make(folder / "in", times)
        copied = copy(folder / "in", folder / "copy.h5")
        words = ["merge", folder / "in", "--out", folder / "out.h5", "--memory", f"{LIMIT}B"]
        merged, _, peak = watch(words)
    table = Table("", "seconds", "jets/s", "peak MiB", title=f"{num_jets:,} jets")
    table.add_row("plain copy", f"{copied:.1f}", f"{num_jets / copied:,.0f}", "")
    table.add_row("merge", f"{merged:.1f}", f"{num_jets / merged:,.0f}", f"{peak / 2**20:.0f}")
    Console().print(table)
    holds = peak <= LIMIT and copied / merged >= BAR
    figures = {
        "num_jets": num_jets,
        "times_the_limit": times,
        "limit_mib": LIMIT / 2**20,
        "peak_mib": peak / 2**20,
        "merge_jets_per_second": num_jets / merged,
        "ratio_to_copy": copied / merged,
        "bar": BAR,
    }
    print(json.dumps({**figures, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
