"""One training of a scan: finetune, export and evaluate, as far as they are not done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jetssl_cli.config import Strict
from jetssl_cli.data.hdf5 import attributes_of, open_complete, readable
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.sources import require_same_sources
from jetssl_cli.scores.evaluate import FEWEST_REPLICAS, EvaluateConfig, evaluate
from jetssl_cli.scores.export import ExportConfig, export
from jetssl_cli.scores.provenance import sha256
from jetssl_cli.scores.rows import Row
from jetssl_cli.scores.scorefile import FORMAT, VERSION


@dataclass(frozen=True)
class Point:
    """One training of a scan."""

    line: str
    """Which line of the plot it belongs to."""
    cfg: FinetuneConfig
    test: Path
    scores: Path

    @property
    def num_jets(self) -> int:
        """Labelled jets."""
        assert self.cfg.data.subset is not None
        return self.cfg.data.subset


class Measured(Strict):
    """What a training of a scan came to."""

    line: str
    """Backbone and mode."""
    num_jets: int
    """Labelled jets."""
    seed: int
    best_step: int
    """Step of the weights that were kept."""
    accuracy: float
    """On the test jets."""
    auc: float | None
    """Area under the ROC curve, as ``jetssl evaluate`` has it."""
    rejection: float | None
    """Of the class that was asked for."""
    rejection_bound: bool
    """No background jet passes: it is a lower bound at 95 %."""
    run: Path


def measure(point: Point, rejection: str | None) -> Measured:
    """Finetune and export a point, as far as that is not done, and evaluate it.

    Raises:
        ConfigError: the folder holds another training, or one of other jets or another backbone.
    """
    run = point.cfg.out
    if checkpoint.is_begun(run):
        checkpoint.require_same(run, checkpoint.read_config(run, FinetuneConfig), point.cfg)
    if checkpoint.is_complete(run):
        require_same_sources(run, point.cfg.data, point.cfg.backbone, random=point.cfg.random)
    else:
        point.scores.unlink(missing_ok=True)
        finetune(point.cfg.model_copy(update={"resume": True}))
    if not _are_of(point.scores, run, point.test):
        point.scores.parent.mkdir(parents=True, exist_ok=True)
        export(ExportConfig(run=run, data=point.test, out=point.scores, overwrite=True))
    (row,) = evaluate(
        EvaluateConfig(scores=(point.scores,), replicas=FEWEST_REPLICAS, tracking=False)
    )  # of which the values are taken, and no interval
    assert isinstance(row, Row)
    assert row.accuracy.value is not None
    found = row.rejection.get(rejection) if rejection else None
    return Measured(
        line=point.line,
        num_jets=point.num_jets,
        seed=point.cfg.train.seed,
        best_step=_best_step(run),
        accuracy=row.accuracy.value,
        auc=row.auc.value,
        rejection=found.value if found else None,
        rejection_bound=found is not None and found.bound,
        run=run,
    )


def _are_of(scores: Path, run: Path, test: Path) -> bool:
    """Whether scores are there, by the weights and of the jets that are there now."""
    if not scores.exists():
        return False
    with open_complete(scores, FORMAT, VERSION) as file, readable(scores):
        about = attributes_of(file)
    told = about.get("data_hash"), about.get("weights_hash")
    return told == (sha256(test), sha256(run / checkpoint.MODEL))


def _best_step(run: Path) -> int:
    """The step of the best validation, or the last where it does not matter (train.keep=last)."""
    rows = [
        json.loads(row)
        for row in (run / checkpoint.METRICS).read_text(encoding="utf-8").splitlines()
    ]
    best = [row for row in rows if "best/loss" in row]
    return int((best or rows)[-1]["step"])
