"""What each method learns at one budget: five pretrained encoders and an untrained one, frozen.

    python benchmarks/methods.py FOLDER [--out runs] [--seeds 3] [--jets 200000] [--jobs 2]

FOLDER has train.h5 and val.h5. For every seed and method this runs, on one core each,

    jetssl pretrain --method METHOD --size tiny ... --jets 200000 optim.lr=1e-3 train.seed=SEED
    jetssl finetune --backbone ... --frozen ... --jets 50000 optim.lr=1e-3 train.seed=SEED

and ``finetune --random`` for the untrained encoder. Runs that are done are kept, and one that was
stopped goes on. The *probe* is the accuracy of the attention pool that the second command
trains, on all of val.h5, the *rank* the effective rank of the mean vectors of 2,000 of its jets.
Bar: each method above the untrained encoder by more than the spread over seeds, and DINO and JEPA
within 5 points of MPM.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.finetune import load_classifier
from jetssl_cli.runs.probe import effective_rank, jet_vectors

METHODS = ("ssfm", "mpm", "gpt", "dino", "jepa")
UNTRAINED = "untrained"
SHORT = ["optim.lr=1e-3", "tracking=false"]


class Study:
    """Where the runs are, and how long each is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.files = [f"--{name}={args.folder / name}.h5" for name in ("train", "val")]

    def encoder(self, method: str, seed: int) -> None:
        """Pretrain, and train the probe."""
        pretrained, seeded = self.out / f"{method}-{seed}", [f"train.seed={seed}"]
        words = ["--method", method, "--size", self.args.size, "--jets", str(self.args.jets)]
        words += [*SHORT, *seeded, "data.num_val_jets=2000", "train.val_every=400"]
        self.jetssl("pretrain", *words, out=pretrained)
        self.probe(pretrained, "--frozen", method, seed)

    def untrained(self, seed: int) -> None:
        """Train the probe on new weights."""
        self.probe(self.out / f"{self.args.methods[0]}-{seed}", "--random", UNTRAINED, seed)

    def probe(self, backbone: Path, mode: str, name: str, seed: int) -> None:
        """Train the probe on an encoder that stays as it is."""
        words = ["--backbone", str(backbone), mode, "--jets", str(self.args.probe_jets)]
        words += [*SHORT, f"train.seed={seed}"]
        self.jetssl("finetune", *words, out=self.out / f"{name}-{seed}-probe")

    def jetssl(self, *words: str, out: Path) -> None:
        """Run a command of the project, if its run has not come to its end yet."""
        if (out / checkpoint.MODEL).is_file():
            return
        command = ["jetssl", *words, *self.files, f"--resume={out}"]
        print(" ".join(command), flush=True)
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        program = [sys.executable, "-m", "jetssl_cli", *command[1:]]
        done = subprocess.run(program, env=alone, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")

    def found(self, name: str, seed: int) -> dict[str, float]:
        """Accuracy of the probe and effective rank."""
        run = self.out / f"{name}-{seed}-probe"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        accuracy = [line["val/accuracy"] for line in lines if "val/accuracy" in line][-1]
        cfg, _, classifier = load_classifier(run)
        data = cfg.data.model_copy(update={"num_val_jets": 2000})
        with torch.inference_mode():
            vectors = [jet_vectors(classifier.encoder(batch)) for batch in data.val_stream()]
        return {"probe": accuracy, "rank": effective_rank(torch.cat(vectors))}


def main() -> int:
    """Run what is missing, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--methods", type=lambda words: words.split(","), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jets", type=int, default=200_000, help="of each pretraining")
    parser.add_argument("--probe-jets", type=int, default=50_000, help="of each probe")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    study, seeds = Study(args), range(args.seeds)
    names = (*args.methods, UNTRAINED)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(
            pool.map(study.encoder, args.methods * len(seeds), sorted([*seeds] * len(args.methods)))
        )
        list(pool.map(study.untrained, seeds))
        rows = {name: list(pool.map(study.found, [name] * len(seeds), seeds)) for name in names}
    title = f"{args.size}, {args.jets:,} jets, {args.seeds} seeds: mean +- standard deviation"
    table = Table("method", "probe", "effective rank", title=title)
    for name, row in rows.items():
        cells = ([one[key] for one in row] for key in ("probe", "rank"))
        table.add_row(name, *(f"{statistics.mean(x):.3f} +- {spread(x):.3f}" for x in cells))
    Console().print(table)
    print(json.dumps({"rows": rows, "holds": holds(rows)}))
    return 0 if holds(rows) else 1


def spread(values: list[float]) -> float:
    """The standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def holds(rows: dict[str, list[dict[str, float]]]) -> bool:
    """Whether the bars of the module are met."""
    probes = {name: [one["probe"] for one in row] for name, row in rows.items()}
    mean = {name: statistics.mean(values) for name, values in probes.items()}
    wide = {name: max(spread(values), spread(probes[UNTRAINED])) for name, values in probes.items()}
    above = all(mean[m] > mean[UNTRAINED] + wide[m] for m in mean if m != UNTRAINED)
    near = "mpm" not in mean or all(
        mean[name] > mean["mpm"] - 0.05 for name in ("dino", "jepa") if name in mean
    )
    return above and near


if __name__ == "__main__":
    sys.exit(main())
