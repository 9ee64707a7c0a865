"""Write the corpus anew, from valid files: ``python tests/fuzz/make_corpus.py``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import numpy as np
import torch
from fuzz.targets import CORPUS, OPTIONS, network

from jetssl_cli.config import Layer, load, shipped, to_yaml
from jetssl_cli.data.hdf5 import create
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import load_recipe, schema_of
from jetssl_cli.data.state import Origin
from jetssl_cli.data.write import write
from jetssl_cli.runs import weightfile
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.pretrain import load_config
from jetssl_cli.runs.snapshot import CheckpointConfig, Snapshot, Snapshots
from jetssl_cli.scores import trackfile
from jetssl_cli.scores.scorefile import write_scores

OVERRIDES = """train.steps=7
objective.mask.name=subjet
objective.mask={name: random, share: 0.3}
data.val=[a.h5, b.h5]
optim.lr=3e-4
encoder.attention=auto
tracking=false
train.max_time=
checkpoint.every_minutes=null"""
SIZES = np.array([2, 0, 3, 1])


def recipes(folder: Path) -> None:
    for name in ("btag_reduced", "jetclass"):
        shutil.copy(shipped("data_recipes") / f"{name}.yaml", folder / f"{name}.yaml")


def configs(folder: Path) -> None:
    cfg = load_config("dino", "tiny", OPTIONS)
    (folder / "pretrain.yaml").write_text(to_yaml(cfg))
    layers = [
        Layer.read(shipped("configs") / "finetune" / "classify.yaml"),
        Layer("own", {**OPTIONS.settings, "backbone": "b", "encoder": {}}),
    ]
    (folder / "finetune.yaml").write_text(to_yaml(load(FinetuneConfig, layers)))
    (folder / "schema.yaml").write_text(to_yaml(schema_of(load_recipe("btag_reduced"))))
    (folder / "own.yaml").write_text("objective:\n  time_features: 8\ntrain:\n  jets: 10000\n")


def overrides(folder: Path) -> None:
    for index, line in enumerate(OVERRIDES.split("\n")):
        (folder / f"{index}.txt").write_text(line)


def jagged(folder: Path) -> None:
    for name, precision in (("jetclass", "float32"), ("btag", "float16")):
        recipe = load_recipe(name)
        schema, rng = schema_of(recipe), np.random.default_rng(0)
        jets, rows = len(SIZES), int(SIZES.sum())
        made = JetArrays(
            rng.normal(size=(rows, len(schema.constituents))).astype(precision),
            rng.integers(0, 5, rows).astype(np.uint8),
            rng.integers(0, 3, (rows, len(schema.truth))).astype(np.int32),
            SIZES,
            rng.normal(size=(jets, len(schema.jets))).astype(np.float32),
            np.arange(jets, dtype=np.int16) % len(schema.classes),
        )
        with write(folder / f"{name}.h5", recipe, ["a.root"], precision=precision) as writer:
            writer.note_left_out({"outside": 2})
            writer.append(made)
    _packed_anew(folder / "jetclass.h5", folder / "latest.h5")


def _packed_anew(source: Path, path: Path) -> None:
    """In other ways than ours: contiguous arrays, lzf."""
    with h5py.File(source, "r") as old, h5py.File(path, "w", libver="latest") as new:
        new.attrs.update(dict(old.attrs))
        for name in ("offsets", "jets/features", "jets/labels", "sources"):
            new[name] = old[name][()]
        for name in ("constituents/features", "constituents/id"):
            new.create_dataset(name, data=old[name][()], chunks=True, compression="lzf")


def scores(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, classes in (("classes", ("QCD", "Hbb", "Tbl")), ("cwola", ("QCD", "Hbb"))):
        mixture = {"background": "QCD", "signal": "Hbb", "seed": 1}
        mixture |= {"num_signal": 3, "num_background": 3}
        more = {"task": "cwola", "mixture": json.dumps(mixture)} if name == "cwola" else {}
        logits = rng.normal(size=(6, len(classes))).astype(np.float32)
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        with write_scores(
            folder / f"{name}.h5",
            classes=classes,
            jet_columns=["pt", "eta"],
            run="runs/a",
            data="a.h5",
            more={"seed": "1", "group": "g", "data_hash": "h", **more},
        ) as writer:
            labels = np.arange(6) % len(classes)
            writer.append(softmax, logits, labels, rng.normal(size=(6, 2)))
    rows = int(SIZES.sum())
    tasks: dict[str, tuple[dict[str, str], dict[str, np.ndarray]]] = {
        "track-origin": (
            {"classes": '["pileup", "primary", "fromB"]'},
            {"scores": np.full((rows, 3), 1 / 3, np.float32)},
        ),
        "vertex": (
            {"threshold": "0.5"},
            {
                "vertices": np.zeros(rows, np.int32),
                "pairs": np.full(4, 0.5, np.float32),
                "displaced": np.zeros(rows, np.uint8),
            },
        ),
    }
    for task, (attributes, arrays) in tasks.items():
        with create(folder / f"{task}.h5", trackfile.FORMAT, trackfile.VERSION) as table:
            table.describe({"task": task, "run": "runs/a", "data": "a.h5", **attributes})
            table.append("offsets", np.array([0, *np.cumsum(SIZES)]))
            table.append("truth", (np.arange(rows) % 3).astype(np.int32))
            for name, array in arrays.items():
                table.append(name, array)


def weights(folder: Path) -> None:
    weightfile.save(folder / "model.safetensors", network())
    run = folder / "run"
    run.mkdir()
    state = Origin((4,), 2, None, 1).state_after(0, 1).to_dict()
    facts = {
        "code": "0.1.0",
        "steps": 1,
        "seconds": 0.5,
        "reader": state,
        "latest": {"loss": 0.1},
        "best": [0.1, 1, 0],
    }
    tensors = {"module.w": torch.arange(3.0), "random.global": torch.zeros(1, 8, dtype=torch.uint8)}
    Snapshots(run, CheckpointConfig()).write(Snapshot(tensors, facts))
    (run / "snapshots" / "000000001.safetensors").replace(folder / "snapshot.safetensors")
    shutil.rmtree(run)


MAKERS: dict[str, Callable[[Path], None]] = {
    "recipe": recipes,
    "config": configs,
    "overrides": overrides,
    "jagged": jagged,
    "scores": scores,
    "weights": weights,
}

if __name__ == "__main__":
    for target, make in MAKERS.items():
        shutil.rmtree(CORPUS / target, ignore_errors=True)
        (CORPUS / target).mkdir(parents=True)
        make(CORPUS / target)
