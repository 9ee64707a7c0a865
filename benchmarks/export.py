"""Export against a padded float32 forward of the same network, on one core; and its memory.

    python benchmarks/export.py [--size tiny] [--quick] [--cpu-time]

The jets are those of the committed sample, many times over. Export is the whole function: loading,
hashing, reading, sorting, the network (in bf16 where the CPU has instructions for it), writing. The
padded side is the network alone, with every jet filled up to 64 constituents, 250 jets at a time.
Memory is that of the command in fresh processes, with all outputs but ONNX. Bars: 3 times as many
jets a second, and no more than 32 MiB between 5,000 and 20,000 jets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from encoder import CONSTITUENTS, JETS, all_jets, pad
from rich.console import Console
from rich.table import Table
from watch import watch

from jetssl_cli.config import Layer
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.scaling import fit_scaling
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.data.write import write
from jetssl_cli.objectives.supervised import Supervised, SupervisedConfig
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.finetune import load_classifier
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.pretrain import build_encoder, load_config
from jetssl_cli.scores.export import ExportConfig, export

BAR, MOST_MIB = 3.0, 32
NUM_JETS = (5_000, 20_000)


def make_run(out: Path, size: str, schema: Schema, jets: JetArrays) -> None:
    """A run folder with an untrained classifier of a size."""
    torch.manual_seed(0)
    given = {"out": str(out), "data": {"train": "train.h5", "val": "val.h5"}}
    preset = load_config("ssfm", size, Layer("benchmark", given))
    cfg = FinetuneConfig(
        out=out, data=preset.data, backbone=Path("backbone"), encoder=preset.encoder
    )
    encoder = build_encoder(cfg.encoder, fit_scaling(schema, [jets]), schema)
    checkpoint.begin(out, cfg, schema)
    weightfile.save(out / checkpoint.MODEL, SupervisedConfig().build(encoder, len(schema.classes)))


def make_data(path: Path, num_jets: int, jets: JetArrays) -> None:
    """A data file of so many jets."""
    with write(path, load_recipe("jetclass"), ["sample"]) as writer:
        for start in range(0, num_jets, len(jets)):
            writer.append(jets.take(np.arange(min(len(jets), num_jets - start))))


def padded_seconds(classifier: Supervised, jets: JetArrays, args: argparse.Namespace) -> float:
    """Seconds that a jet takes."""
    starts = range(0, JETS * args.repeats, JETS)
    batches = [to_batch(pad(jets.take(np.arange(s, s + JETS) % len(jets)))) for s in starts]
    times = []
    with torch.inference_mode():
        classifier.logits(batches[0])
        for batch in batches:
            start = args.clock()
            classifier.logits(batch).softmax(-1)
            times.append(args.clock() - start)
    return statistics.median(times) / JETS


def peak_mib(run: Path, data: Path, out: Path) -> float:
    """Largest memory of the command."""
    words = ["export", run, "--data", data, "--out", out / "s.h5", "--embeddings", out / "e.h5"]
    words += ["--root", out / "s.root", "--overwrite"]
    return watch(words, OMP_NUM_THREADS="1").peak_bytes / 2**20


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", help="tiny or small")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and 5,000 jets")
    parser.add_argument("--cpu-time", action="store_true", help="not to count other work")
    args = parser.parse_args()
    args.clock = time.process_time if args.cpu_time else time.perf_counter
    args.repeats = 4 if args.quick else 12
    torch.set_num_threads(1)
    jets, schema = all_jets()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run", args.size, schema, jets)
        for num_jets in NUM_JETS:
            make_data(folder / f"{num_jets}.h5", num_jets, jets)
        classifier = load_classifier(folder / "run")[2]
        ours, theirs = [], []
        for number in range(3):
            theirs.append(padded_seconds(classifier, jets.first(CONSTITUENTS), args))
            out, count = folder / f"{number}.scores.h5", NUM_JETS[0 if args.quick else 1]
            cfg = ExportConfig(run=folder / "run", data=folder / f"{count}.h5", out=out)
            start = args.clock()
            precision = export(cfg).precision
            ours.append((args.clock() - start) / count)
        peaks = [peak_mib(folder / "run", folder / f"{count}.h5", folder) for count in NUM_JETS]
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    rates = [1 / statistics.median(times) for times in (ours, theirs)]
    table = Table("", "jets/s", title=f"export, {args.size}, one core, {precision}")
    table.add_row("export", f"{rates[0]:.0f}")
    table.add_row("padded float32 forward", f"{rates[1]:.0f}")
    for count, peak in zip(NUM_JETS, peaks, strict=True):
        table.add_row(f"peak memory, {count:,} jets", f"{peak:.0f} MiB")
    Console().print(table)
    holds = ratio >= BAR and peaks[1] - peaks[0] <= MOST_MIB
    figures = {
        "jets_per_second": rates[0],
        "padded_jets_per_second": rates[1],
        "ratio": ratio,
        "bar": BAR,
        "peak_mib": peaks,
        "most_mib_between": MOST_MIB,
    }
    print(json.dumps({**figures, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
