"""Speed and memory of `jetssl evaluate`, beside scikit-learn and a plain bootstrap.

    python benchmarks/evaluate.py [--jets N] [--quick]

A score file of ten million jets of the ten classes of JetClass is made of random numbers that know
something of the labels, and evaluated by the command: accuracy, AUC, nine rejections, calibration
and confusion, with the bootstrap of a thousand replicas. Beside it, on the first jets of the same
file: scikit-learn's accuracy and one-vs-one AUC, and one replica of a plain bootstrap of the same
figures, both scaled to all jets (the time of a sort grows a little faster, so this flatters them)
and the bootstrap to a thousand replicas.

Bars for ten million jets: 60 s and 4 GB of memory at its peak, and the figures agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve
from watch import watch

from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.scores.metrics import BACKGROUND, REPLICAS, WORKING_POINTS
from jetssl_cli.scores.scorefile import ScoreSet, read_scores, write_scores
from jetssl_cli.scores.single import evaluate_scores

JETS, SAMPLE = 10_000_000, 200_000
SECONDS, GIGABYTES = 60.0, 4.0
CLASSES = load_recipe("jetclass").labels.classes
PART = 500_000


def make(path: Path, num_jets: int) -> None:
    """Write scores that tell the classes apart about as well as a good network does."""
    rng = np.random.default_rng(0)
    columns = ("jet_pt", "jet_eta", "jet_phi", "jet_sdmass", "num_constituents")
    with write_scores(path, classes=CLASSES, jet_columns=columns, run="run", data="data") as writer:
        for start in range(0, num_jets, PART):
            size = min(PART, num_jets - start)
            labels = rng.integers(len(CLASSES), size=size)
            logits = rng.normal(scale=2, size=(size, len(CLASSES))).astype(np.float32)
            logits[np.arange(size), labels] += 6
            scores = np.exp(logits)
            scores /= scores.sum(axis=1, keepdims=True)
            writer.append(scores, logits, labels, rng.random((size, len(columns))))


def plain(found: ScoreSet) -> dict[str, float]:
    """The figures by scikit-learn."""
    scores, labels = found.scores, found.labels
    figures = {
        "accuracy": accuracy_score(labels, scores.argmax(axis=1)),
        "auc": roc_auc_score(labels, scores, multi_class="ovo", average="macro"),
    }
    b = CLASSES.index(BACKGROUND)
    for signal, efficiency in WORKING_POINTS.items():
        s = CLASSES.index(signal)
        both = np.isin(labels, (s, b))
        p = scores[both].astype(np.float64)
        false, true, _ = roc_curve(
            labels[both] == s, p[:, s] / (p[:, s] + p[:, b]), drop_intermediate=False
        )
        share = false[np.searchsorted(true, efficiency)]
        figures[signal] = 1 / share if share else np.inf
    return figures


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=JETS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the jets")
    words = parser.parse_args()
    num_jets = words.jets // 10 if words.quick else words.jets
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "scores.h5", num_jets)
        tracked = f"sqlite:///{folder}/mlflow.db"
        seconds, cpu, peak_bytes = watch(
            ["evaluate", folder / "scores.h5"], MLFLOW_TRACKING_URI=tracked
        )
        found = read_scores(folder / "scores.h5")
    peak = peak_bytes / 1e9
    size = min(SAMPLE, num_jets)
    sample = ScoreSet(Path("sample"), "", "", CLASSES, found.scores[:size], found.labels[:size])
    scale = num_jets / size
    start = time.perf_counter()
    wanted = plain(sample)
    sklearn = (time.perf_counter() - start) * scale
    drawn = np.random.default_rng(0).integers(size, size=size)
    start = time.perf_counter()
    plain(ScoreSet(Path("replica"), "", "", CLASSES, sample.scores[drawn], sample.labels[drawn]))
    bootstrap = (time.perf_counter() - start) * scale * REPLICAS
    row, _ = evaluate_scores(sample, replicas=100)
    ours = {"accuracy": row.accuracy.value, "auc": row.auc.value}
    ours |= {signal: cut.value for signal, cut in row.rejection.items() if cut and not cut.bound}
    agree = all(abs(value / wanted[figure] - 1) < 1e-6 for figure, value in ours.items())
    table = Table("", "seconds", "CPU seconds", "peak GB", title=f"{num_jets:,} jets, 10 classes")
    table.add_row(
        f"jetssl evaluate, {REPLICAS:,} replicas", f"{seconds:.1f}", f"{cpu:.1f}", f"{peak:.2f}"
    )
    table.add_row(
        f"scikit-learn, no uncertainties (scaled from {size:,})", f"{sklearn:.1f}", "", ""
    )
    table.add_row(f"plain bootstrap, {REPLICAS:,} replicas (scaled)", f"{bootstrap:,.0f}", "", "")
    Console().print(table)
    holds = seconds <= SECONDS and peak <= GIGABYTES and agree
    figures = {
        "num_jets": num_jets,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gb": peak,
        "sklearn_seconds": sklearn,
        "plain_bootstrap_seconds": bootstrap,
        "ratio_to_plain_bootstrap": bootstrap / seconds,
        "figures_agree": agree,
        "bar_seconds": SECONDS,
        "bar_gb": GIGABYTES,
    }
    print(json.dumps({**figures, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
