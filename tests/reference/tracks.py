"""Jets whose truth shows in their tracks, and short trainings for each task on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from reference.jets import tiny_config

from jetssl_cli.config import Layer
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import Recipe, load_recipe
from jetssl_cli.data.write import write
from jetssl_cli.objectives.mpm import MPMConfig
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import load_config
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.run_config import TrainConfig

RECIPE = load_recipe("btag")
MEANS = np.array([0.0, 0.6, 1.5, -1.0])
"""d0 of each origin [mm]."""
UNKNOWN = 0.1
"""Share of the tracks whose truth is not known."""


def true_jets(num_jets: int, seed: int) -> JetArrays:
    """Jets of light, charm and bottom: all but light ones have tracks of a second vertex and more.

    The origin of a track is told by its d0. Tracks of one origin are of one vertex, whose numbers
    are in another order in each jet.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_jets)
    sizes = rng.integers(0, 9, num_jets)
    owner = np.repeat(np.arange(num_jets), sizes)
    total = len(owner)
    origin = np.where(rng.random(total) < 0.5, 0, rng.integers(1, 4, total))
    origin = np.where(labels[owner] == 0, 0, origin)
    order = rng.permuted(np.tile(np.arange(4), (num_jets, 1)), axis=1)
    features = rng.normal(size=(total, 7))
    features[:, 0] = 1 + rng.random(total)
    features[:, 3] = MEANS[origin] + 0.05 * rng.normal(size=total)
    features[:, [4, 6]] = 0.05
    truth = np.column_stack([order[owner, origin], origin])
    truth[rng.random(total) < UNKNOWN] = -1
    return JetArrays(
        features.astype(np.float32),
        np.where(rng.random(total) < 0.5, 1, 3).astype(np.uint8),
        truth.astype(np.int32),
        sizes.astype(np.int64),
        rng.normal(size=(num_jets, 5)).astype(np.float32),
        labels.astype(np.int16),
    )


def write_true_jets(path: Path, num_jets: int, seed: int, recipe: Recipe = RECIPE) -> Path:
    """A data file of such jets."""
    with write(path, recipe, []) as writer:
        writer.append(true_jets(num_jets, seed))
    return path


def make_backbone(folder: Path, num_jets: int = 500) -> Path:
    """Files of so many jets to train on and fewer others, and a backbone that has seen a few."""
    sizes = {"train": num_jets, "val": num_jets // 5, "test": num_jets // 2}
    for seed, (name, size) in enumerate(sizes.items()):
        write_true_jets(folder / f"{name}.h5", size, seed)
    data = DataConfig(train=(folder / "train.h5",), val=(folder / "val.h5",), batch_size=50)
    cfg = PretrainConfig(
        out=folder / "backbone",
        objective=MPMConfig(),
        encoder=tiny_config(width=32),
        data=data,
        train=TrainConfig(steps=1, precision="32"),
        tracking=False,
    )
    return pretrain(cfg)


def tune(folder: Path, task: str, out: str, steps: int, *overrides: str) -> Path:
    """Finetune the backbone of the folder for a task."""
    options = {
        "out": str(folder / out),
        "backbone": str(folder / "backbone"),
        "data": {"train": str(folder / "train.h5"), "val": str(folder / "val.h5")},
        "optim": {"lr": 3e-3},
        "train": {"steps": steps, "val_every": steps, "precision": "32"},
        "tracking": False,
    }
    layer = Layer("here", options)
    return finetune(load_config(folder / "backbone", layer, task=task, overrides=overrides))
