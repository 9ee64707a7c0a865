"""``jetssl scan``: how many labels a backbone saves, as accuracy against the number of labels.

Every point is a run folder and a score file, made as ``finetune`` and ``export`` make them; what is
there already is not made again. All points have the same rule for their length: at most ``steps``
steps with ``VALIDATIONS`` validations, the end after ``patience`` validations without a smaller
loss, and the weights at the smallest. A batch is ``data.batch_size`` jets, or all of a smaller
subset. So 100 labels, which are learned by heart in a few dozen steps, end early, and 100,000 take
the steps that they need.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PositiveInt

from jetssl_cli.config import Layer, Strict, override_layer, parts
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.sample import look
from jetssl_cli.data.workers import share
from jetssl_cli.errors import ConfigError, DataError, suggest
from jetssl_cli.progress import progress
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.finetune_config import load_config, mode
from jetssl_cli.runs.pretrain import PretrainConfig
from jetssl_cli.scores.metrics import BACKGROUND, WORKING_POINTS
from jetssl_cli.scores.scanplot import plot
from jetssl_cli.scores.scanpoint import Measured, Point, measure
from jetssl_cli.scores.scansummary import Summary, summarise
from jetssl_cli.scores.tables import write_all

Mode = Literal["frozen", "full", "from-scratch", "random"]
BASELINES: tuple[Mode, ...] = ("from-scratch", "random")
"""They take the architecture of a backbone, and none of its weights."""
VALIDATIONS = 40
COLUMNS = ("constituents", "ids", "jets")
"""Parts of a schema that test jets have to have as well; classes may differ."""
OPTIONS = {
    "backbone": "--backbone",
    "out": "--out",
    "data.train": "--train",
    "data.val": "--val",
    "data.subset": "--num-jets",
    "train.seed": "--seeds",
    "train.steps": "--steps",
    "train.patience": "--patience",
    **dict.fromkeys(
        ("random", "unfreeze_at", "lora", "objective.frozen", "cache_embeddings"), "--modes"
    ),
}
"""What a scan says of its trainings by options of its own, and names them by."""


class ScanConfig(Strict):
    """What to finetune, on how many labels, and how."""

    backbones: tuple[Path, ...] = Field(min_length=1)
    """Folders of pretraining runs."""
    num_jets: Annotated[tuple[PositiveInt, ...], BeforeValidator(parts), Field(min_length=1)]
    """Numbers of labelled jets."""
    seeds: PositiveInt = 3
    """So many trainings of each kind: other jets, other weights."""
    modes: Annotated[tuple[Mode, ...], BeforeValidator(parts), Field(min_length=1)] = (
        "frozen", "full", "from-scratch", "random",
    )  # fmt: skip
    """What becomes of the backbone."""
    train: tuple[Path, ...] = Field(min_length=1)
    """Jagged files that the labelled jets are drawn from."""
    val: tuple[Path, ...] = Field(min_length=1)
    """Jagged files that decide when a training ends and which weights are kept."""
    test: Path
    """Jagged file that the accuracy is measured on."""
    out: Path
    """Folder of runs, scores, table and plot."""
    steps: PositiveInt = 2000
    """Most steps of a training."""
    patience: PositiveInt = 8
    """Validations without a smaller loss that end it."""
    jobs: PositiveInt = 1
    """Trainings at a time, each in a process of its own."""
    rejection: str | None = None
    """Also plot the background rejection of this class."""
    overrides: tuple[str, ...] = ()
    """Settings of every training, as ``section.key=value``; none of ``OPTIONS``."""


class ScanReport(Strict):
    """All points of a scan."""

    points: tuple[Measured, ...]
    summary: tuple[Summary, ...]
    files: tuple[Path, ...]
    """Tables and plots."""


def scan(cfg: ScanConfig) -> ScanReport:
    """Finetune, export and evaluate all points; write a table and a plot.

    They are ``scan.csv`` and ``scan.json``, ``scan.png`` and ``scan.pdf``.

    Raises:
        ConfigError: a setting is not valid, or ``out`` holds another scan.
        DataError: a file cannot be read or written, or has too few jets.
        RunError: a backbone is no pretraining run.
    """
    points = plan(cfg)
    done: dict[str, Measured] = {}
    jobs = min(cfg.jobs, len(points))
    if jobs == 1:
        done = {point.scores.stem: measure(point, cfg.rejection) for point in points}
    else:
        tasks = [(point, cfg.rejection, jobs) for point in points]
        with progress(f"scan {cfg.out.name}", len(points), "trainings") as advance:
            for (point, *_), found in share(
                _quietly, tasks, jobs, doing="finetuning", broken="stopped"
            ):
                done[point.scores.stem] = found
                advance(1)
    measured = [done[point.scores.stem] for point in points]
    summary = summarise(measured)
    report = ScanReport(points=tuple(measured), summary=tuple(summary), files=())
    note = (
        f"{cfg.test.name}; mean and standard deviation of {cfg.seeds} seeds"
        if cfg.seeds > 1
        else f"{cfg.test.name}; one seed"
    )
    if any(each.rejection_bound for each in summary):
        note += "; arrows: lower bounds at 95 %, where no background jet passes in any seed"
    plots = plot(summary, cfg.out / "scan", note=note, rejection=cfg.rejection)
    as_json = report.model_dump_json(indent=2, exclude={"files"}) + "\n"
    tables = {"scan.csv": _csv(measured), "scan.json": as_json}
    write_all(cfg.out, tables)
    files = [*(cfg.out / name for name in tables), *plots]
    return report.model_copy(update={"files": tuple(files)})


def plan(cfg: ScanConfig) -> list[Point]:
    """Every training of a scan, with its resolved config.

    Baselines are made once for all backbones of one architecture.

    Raises:
        ConfigError: two backbones have the same name, the data have no such class to reject, or a
            setting is not valid or is that of an option.
        DataError: the data cannot be read, or have too few jets.
        RunError: a backbone is no pretraining run.
    """
    _refuse_options(cfg.overrides)
    names = [path.resolve().name for path in cfg.backbones]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two backbones are called {twice[0]!r}; rename one of them")
    schema, sizes = look(cfg.train)
    named = ", ".join(map(str, cfg.train))
    for files in (cfg.val, (cfg.test,)):  # before the first training
        found, _ = look(files)
        if any(getattr(found, part) != getattr(schema, part) for part in COLUMNS):
            raise DataError(f"{files[0]}: has other columns than {cfg.train[0]}")
    if max(cfg.num_jets) > sum(sizes):
        raise DataError(f"{named}: {max(cfg.num_jets)} jets are wanted, there are {sum(sizes)}")
    if cfg.rejection is not None:
        _require_rejection(cfg.rejection, schema.classes, cfg.test)
    kinds: dict[str, str] = {}
    lines: list[tuple[str, Path, Mode]] = []
    for name, path in zip(names, cfg.backbones, strict=True):
        first = kinds.setdefault(_architecture(path), name)
        modes = dict.fromkeys(cfg.modes)
        ways = [way for way in modes if way not in BASELINES or first == name]
        lines += [(f"{name} {way}", path, way) for way in ways]
    if len(kinds) == 1:
        lines = [(way if way in BASELINES else line, path, way) for line, path, way in lines]
    return [
        _point(cfg, line, path, way, num, seed)
        for line, path, way in lines
        for num in sorted(set(cfg.num_jets))
        for seed in range(cfg.seeds)
    ]


def _refuse_options(overrides: Sequence[str]) -> None:
    """Raises ConfigError if one says what an option of the scan says."""
    for layer in map(override_layer, overrides):
        for name, option in OPTIONS.items():
            *sections, key = name.split(".")
            inside = layer.get(*sections)
            if isinstance(inside, Mapping) and key in inside:  # be it null
                raise ConfigError(f"{layer.source}: a scan sets {name} itself; use {option}")


def _require_rejection(name: str, classes: Sequence[str], test: Path) -> None:
    """Raises ConfigError if the test jets cannot have a rejection of this class."""
    with JaggedFile(test) as file:
        there = {file.schema.classes[label] for label in np.unique(file.labels())}
    there &= set(classes)
    rejected = [each for each in WORKING_POINTS if each in there and BACKGROUND in there]
    if name not in rejected:
        raise ConfigError(
            f"no rejection of {name!r}; "
            + (suggest(name, rejected) if rejected else f"{test} has none")
        )


def _architecture(backbone: Path) -> str:
    source = checkpoint.read_config(backbone, PretrainConfig)
    encoder = source.encoder.model_dump(mode="json", exclude={"attention", "recompute"})
    data = source.data.model_dump(include={"batch_size", "max_constituents"})
    schema = checkpoint.read_schema(backbone).model_dump(mode="json")
    return json.dumps([encoder, data, schema], sort_keys=True)


def _point(
    cfg: ScanConfig, line: str, backbone: Path, way: Mode, num_jets: int, seed: int
) -> Point:
    name = f"{line.replace(' ', '-')}-{num_jets}-{seed}"
    settings: dict[str, Any] = {
        "backbone": str(backbone),
        "out": str(cfg.out / "runs" / name),
        "data": {
            "train": list(map(str, cfg.train)),
            "val": list(map(str, cfg.val)),
            "subset": num_jets,
            "in_memory": True,
        },
        "train": {
            "steps": cfg.steps,
            "val_every": max(1, cfg.steps // VALIDATIONS),
            "patience": cfg.patience,
            "seed": seed,
        },
        "cache_embeddings": way in ("frozen", "random"),
        "tracking": False,
        **mode(**{way.replace("-", "_"): True}),
    }
    options = Layer("the scan", settings)
    resolved = load_config(backbone, options, overrides=cfg.overrides)
    if (task := resolved.objective.name) != "supervised":
        raise ConfigError(f"objective.name = {task}: a scan is of classifiers of jets")
    scores = cfg.out / "scores" / f"{name}.h5"
    return Point(line, resolved, cfg.test, scores)


def _quietly(task: tuple[Point, str | None, int]) -> Measured:
    """A point in one of several processes, which share the cores and print nothing."""
    point, rejection, jobs = task
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    with redirect_stderr(io.StringIO()):
        return measure(point, rejection)


def _csv(points: Sequence[Measured]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Measured.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(point.model_dump(mode="json") for point in points)
    return text.getvalue()
