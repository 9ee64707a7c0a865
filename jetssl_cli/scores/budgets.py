"""What trainings have used up: the steps, jets and seconds that their folders have recorded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from jetssl_cli.config import Strict
from jetssl_cli.errors import RunError, reason
from jetssl_cli.runs.checkpoint import CONFIG, METRICS
from jetssl_cli.safeyaml import read_yaml
from jetssl_cli.scores.tables import write_all

RATE, JETS = "train/jets_per_second", "train/jets"


class Spent(Strict):
    """What one training has used up."""

    run: str
    command: str
    """What has made it: pretrain or finetune."""
    seed: int
    steps: int
    jets: int
    """Jets seen, counted again in every epoch."""
    seconds: float
    """Time of training, validations between steps included, and without pauses of a stopped run."""


def spent(run: Path) -> Spent:
    """What a training has used up.

    Raises:
        RunError: the folder does not tell.
    """
    settings = read_yaml(run / CONFIG)
    try:
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError as err:
        raise RunError(f"{run}: cannot be read: {reason(err)}") from None
    rows = [json.loads(line) for line in lines]
    trained = [row for row in rows if RATE in row]
    size = int(settings["data"]["batch_size"])
    if trained and JETS in trained[0]:  # else the run is an older one
        size = trained[0][JETS] // trained[0]["step"]
    steps, taken = 0, 0.0
    for row in trained:
        taken += (row["step"] - steps) * size / row[RATE]
        steps = row["step"]
    steps = max([steps, *(row["step"] for row in rows)])
    return Spent(
        run=run.name,
        command=settings["command"],
        seed=settings["train"]["seed"],
        steps=steps,
        jets=steps * size,
        seconds=round(taken, 1),
    )


def write_budgets(runs: Sequence[Path], out: Path) -> None:
    """Write ``budgets.csv`` and ``budgets.md``: a row for each training.

    Raises:
        RunError: a folder does not tell what was used up.
        DataError: the files cannot be written.
    """
    found = [spent(run) for run in runs]
    names = list(Spent.model_fields)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in found)
    cells = [
        [row.run, row.command, str(row.seed), f"{row.steps:,}", f"{row.jets:,}", f"{row.seconds:,}"]
        for row in found
    ]
    lines = [names, ["---", "---", *["---:"] * (len(names) - 2)], *cells]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_all(out, {"budgets.csv": text.getvalue(), "budgets.md": markdown})
