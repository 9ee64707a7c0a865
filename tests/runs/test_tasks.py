"""Finetuning for the tasks: which one, what they need, and that each learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from reference.jets import tiny_config
from reference.tracks import make_backbone, tune
from typer.testing import CliRunner

from jetssl_cli.cli.app import app
from jetssl_cli.config import Layer
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.errors import ConfigError, DataError
from jetssl_cli.objectives.mpm import MPMConfig
from jetssl_cli.runs.finetune import finetune, load_finetuned
from jetssl_cli.runs.finetune_config import load_config
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.scores.evaluate import EvaluateConfig, evaluate
from jetssl_cli.scores.export import ExportConfig, export

MIXTURE = "data.mixture={signal: bottom, background: light, num_signal: %d}"
POOL = "objective.pool={width: 16, heads: 2}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    make_backbone(folder)
    return folder


def measured(run):
    """The last record of each name."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


def options(folder, out):
    files = {name: str(folder / f"{name}.h5") for name in ("train", "val")}
    train = {"steps": 1, "precision": "32"}
    settings = {"out": str(out), "backbone": str(folder / "backbone"), "data": files}
    return Layer("here", settings | {"train": train, "tracking": False})


@pytest.mark.parametrize("task", ["track-origin", "vertex"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_records_what_its_task_is_measured_by(folder, task, frozen):
    run = tune(folder, task, f"{task}-{frozen}", 2, f"objective.frozen={frozen}")
    found = measured(run)
    names = {
        "track-origin": {"val/balanced_accuracy", "val/recall_from_b", "val/cross_entropy"},
        "vertex": {"val/adjusted_rand", "val/threshold", "val/adjusted_rand_of_one_vertex"},
    }
    assert names[task] <= found.keys()
    assert not [name for name in found if "probe" in name or name == "val/accuracy"]
    _, _, network = load_finetuned(run)
    if task == "vertex":
        assert float(network.threshold) == pytest.approx(found["val/threshold"])


@pytest.mark.slow
def test_the_config_of_a_run_repeats_it_without_the_name_of_the_task(folder, tmp_path):
    run = tune(folder, "vertex", "first", 2)
    again = load_config(
        folder / "backbone",
        Layer("here", {"out": str(tmp_path / "again")}),
        config=run / "config.yaml",
    )
    assert again.objective.name == "vertex"
    weights = [(path / "model.safetensors").read_bytes() for path in (run, finetune(again))]
    assert weights[0] == weights[1]


def test_the_numbers_of_a_mixture_are_in_the_config(folder):
    run = tune(folder, "cwola", "numbers", 1, MIXTURE % 20, POOL)
    kept = yaml.safe_load((run / "config.yaml").read_text())["data"]["mixture"]
    assert kept["num_signal"] == 20
    assert kept["num_background"] > 50
    assert yaml.safe_load((run / "schema.yaml").read_text())["classes"] == ["M2", "M1"]
    assert 0 < measured(run)["val/accuracy"] < 1


def test_a_task_that_there_is_not(folder, tmp_path):
    with pytest.raises(ConfigError, match="no task 'vertx'; did you mean 'vertex'"):
        load_config(folder / "backbone", options(folder, tmp_path / "run"), task="vertx")


@pytest.mark.parametrize(("task", "more"), [("cwola", []), ("vertex", [MIXTURE % 3])])
def test_a_mixture_belongs_to_cwola(folder, tmp_path, task, more):
    with pytest.raises(ConfigError, match=r"the task cwola, and no other, needs data\.mixture"):
        load_config(
            folder / "backbone", options(folder, tmp_path / "run"), task=task, overrides=more
        )


@pytest.mark.slow
def test_real_files_without_origins_are_told_before_anything_is_written(
    shared_data: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("btag_reduced")
    source = shared_data / "btag_reduced_valid.root"
    report = convert(ConvertConfig(sources=(source,), recipe=recipe, out=tmp_path))
    (tmp_path / "train.h5").symlink_to(report.files[0].output)
    (tmp_path / "val.h5").symlink_to(report.files[0].output)
    data = DataConfig(
        train=(tmp_path / "train.h5",), val=(tmp_path / "val.h5",), num_val_jets=100, batch_size=20
    )
    cfg = PretrainConfig(
        out=tmp_path / "backbone",
        objective=MPMConfig(),
        encoder=tiny_config(),
        data=data,
        train=TrainConfig(steps=1, precision="32"),
        tracking=False,
    )
    pretrain(cfg)
    with pytest.raises(DataError, match=r"has no truth 'origin' .*; it has vertex"):
        tune(tmp_path, "track-origin", "origin", 1)
    assert not (tmp_path / "origin").exists()
    run = tune(tmp_path, "vertex", "vertex", 2, "data.num_val_jets=100")
    out = tmp_path / "scores.h5"
    export(ExportConfig(run=run, data=tmp_path / "val.h5", out=out))
    (row,) = evaluate(EvaluateConfig(scores=(out,), tracking=False))
    assert row.by_vertices[-1].num_jets > 2000
    assert row.by_vertices[-1].displaced.value is None  # these files have no d0_err


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More jets, to learn from."""
    folder = tmp_path_factory.mktemp("many")
    make_backbone(folder, 6000)
    return folder


def measured_on_test(folder, run):
    out = folder / f"{run.name}.scores.h5"
    export(ExportConfig(run=run, data=folder / "test.h5", out=out))
    (row,) = evaluate(EvaluateConfig(scores=(out,), tracking=False))
    return row


@pytest.mark.slow
def test_origins_are_told_apart(many):
    row = measured_on_test(many, tune(many, "track-origin", "origin", 250))
    assert row.balanced_accuracy.low > 0.9  # by chance 0.25


@pytest.mark.slow
def test_vertices_are_found_better_than_without_a_network(many):
    row = measured_on_test(many, tune(many, "vertex", "vertex", 250))
    all_jets = row.by_vertices[-1]
    assert all_jets.adjusted_rand.low > 0.75 > all_jets.one_vertex.value + 0.2
    assert all_jets.adjusted_rand.value > all_jets.displaced.value


@pytest.mark.slow
def test_signal_is_found_without_labels(many):
    row = measured_on_test(
        many, tune(many, "cwola", "cwola", 200, MIXTURE % 900, POOL, "optim.lr=1e-2")
    )
    assert row.auc.low > 0.75  # by chance 0.5
    assert row.best.value.low > 2  # without a cut 1


def test_the_options_of_the_command_are_the_settings_of_the_mixture(folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("jetssl_cli.runs.finetune.finetune", lambda cfg: given.append(cfg) or "run")
    files = ["--train", str(folder / "train.h5"), "--val", str(folder / "val.h5")]
    words = ["finetune", "--task", "cwola", "--backbone", str(folder / "backbone"), *files]
    words += ["--out", str(tmp_path / "run"), "--signal", "bottom", "--background", "light"]
    words += ["--num-signal", "12", "--num-background", "60"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (cfg,) = given
    wanted = {"signal": "bottom", "background": "light", "num_signal": 12, "num_background": 60}
    assert cfg.data.mixture.model_dump(exclude={"seed"}) == wanted
    assert cfg.objective.name == "cwola"
