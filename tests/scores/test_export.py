"""The exported scores are those of the network, jet by jet, whatever the batch."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from reference.jets import tiny_config

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.stream import to_batch
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import RunError
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs.finetune import FinetuneConfig, finetune, load_classifier
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.training import TrainConfig
from jetssl_cli.scores.export import ExportConfig, export
from jetssl_cli.scores.scorefile import read_scores

MOST = 12


@pytest.fixture(scope="module")
def runs(jagged, tmp_path_factory):
    """A pretraining and a finetuning of it, that has learned a little."""
    folder = tmp_path_factory.mktemp("runs")
    data = DataConfig(
        train=(jagged / "train.h5",),
        val=(jagged / "val.h5",),
        batch_size=16,
        max_constituents=MOST,
        num_val_jets=8,
    )
    common = {"encoder": tiny_config(), "data": data, "tracking": False}
    common |= {"optim": OptimConfig(lr=1e-2), "train": TrainConfig(steps=4, precision="32")}
    pretrain(PretrainConfig(out=folder / "pre", objective=SSFMConfig(time_features=4), **common))
    head = SupervisedConfig(pool=PoolConfig(width=8, heads=2))
    finetune(FinetuneConfig(out=folder / "fine", backbone=folder / "pre", objective=head, **common))
    return folder


@pytest.fixture(scope="module")
def scores(runs, jagged):
    out = runs / "scores.h5"
    report = export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", out=out))
    assert report.files == {"--out": out}
    assert report.num_jets == 500
    return out


@pytest.fixture(scope="module")
def jets(jagged):
    with JaggedFile(jagged / "test.h5") as file:
        return file.read(0, file.num_jets)


def one_jet(jets, jet, most):
    return to_batch(jets.take(np.array([jet])).first(most))


def test_scores_are_the_softmax_of_the_logits_of_the_network(runs, scores, jets):
    """One jet at a time, cut as in training; in the order of the file, to its end."""
    _, _, classifier = load_classifier(runs / "fine")
    chosen = np.arange(0, len(jets), 7)
    with torch.inference_mode():
        each = [classifier.logits(one_jet(jets, jet, MOST)) for jet in chosen]
    logits = torch.cat(each).numpy()
    exponentials = np.exp(logits.astype(np.float64))
    with h5py.File(scores) as file:
        assert file["scores"].dtype == file["logits"].dtype == np.float32
        assert len(file["scores"]) == len(file["logits"]) == len(jets)
        np.testing.assert_allclose(file["logits"][chosen], logits, rtol=1e-4, atol=1e-5)
        wanted = exponentials / exponentials.sum(1, keepdims=True)
        np.testing.assert_allclose(file["scores"][chosen], wanted, rtol=1e-4, atol=1e-6)
    assert logits.std(0).min() > 1e-3  # the jets differ, or their order would not show


def test_jets_longer_than_in_training_are_cut(runs, scores, jets):
    assert jets.sizes.max() > MOST
    _, _, classifier = load_classifier(runs / "fine")
    jet = int(jets.sizes.argmax())
    with torch.inference_mode(), h5py.File(scores) as file:
        uncut = classifier.logits(one_jet(jets, jet, 1000)).numpy()[0]
        assert not np.allclose(file["logits"][jet], uncut, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [9, 499])
def test_the_batch_size_does_not_matter(runs, scores, jagged, tmp_path, batch_size):
    out = tmp_path / "scores.h5"
    settings = {"run": runs / "fine", "data": jagged / "test.h5"}
    export(ExportConfig(out=out, batch_size=batch_size, **settings))
    with h5py.File(scores) as one, h5py.File(out) as two:
        for name in ("labels", "jets"):
            assert np.array_equal(one[name], two[name])
        for name in ("scores", "logits"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_labels_jets_and_names_are_those_of_the_data(runs, scores, jagged, jets):
    with JaggedFile(jagged / "test.h5") as file:
        classes, columns = file.schema.classes, [column.name for column in file.schema.jets]
    with h5py.File(scores) as file:
        assert np.array_equal(file["labels"], jets.labels)
        assert np.array_equal(file["jets"], jets.jets)
        assert json.loads(file.attrs["classes"]) == list(classes)
        assert json.loads(file.attrs["jet_columns"]) == columns
    found = read_scores(scores)
    assert found.classes == classes
    assert found.run == str(runs / "fine")
    assert found.data == str(jagged / "test.h5")


def test_exporting_twice_asks(runs, scores, jagged):
    settings = {"run": runs / "fine", "data": jagged / "test.h5", "out": scores}
    before = scores.read_bytes()
    with pytest.raises(RunError, match="is there already"):
        export(ExportConfig(**settings))
    assert scores.read_bytes() == before
    export(ExportConfig(overwrite=True, **settings))
    assert read_scores(scores).classes


def test_a_pretraining_run_has_no_scores(runs, jagged, tmp_path):
    out = tmp_path / "scores.h5"
    with pytest.raises(RunError, match="is a pretrain run; a finetune run is needed here"):
        export(ExportConfig(run=runs / "pre", data=jagged / "test.h5", out=out))
    assert not out.exists()


def changed_run(runs, folder, old, new):
    folder.mkdir()
    for file in (runs / "fine").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    text = (folder / "schema.yaml").read_text()
    assert old in text
    (folder / "schema.yaml").write_text(text.replace(old, new))
    return folder


def test_data_that_do_not_fit_the_run_are_refused(runs, jagged, tmp_path):
    out = tmp_path / "scores.h5"
    other = changed_run(runs, tmp_path / "columns", "name: jet_pt", "name: jet_energy")
    with pytest.raises(RunError, match=r"test\.h5: its jets are .* was trained on jet_energy"):
        export(ExportConfig(run=other, data=jagged / "test.h5", out=out))
    other = changed_run(runs, tmp_path / "classes", "- Hcc", "- Hss")
    with pytest.raises(RunError, match=r"its classes are .*Hcc.* was trained on .*Hss"):
        export(ExportConfig(run=other, data=jagged / "test.h5", out=out))
    assert not out.exists()


def test_a_broken_network_leaves_no_scores(runs, jagged, tmp_path, monkeypatch):
    classifier = load_classifier(runs / "fine")
    with torch.no_grad():
        classifier[2].pool.head.bias[3] = torch.nan
    monkeypatch.setattr("jetssl_cli.scores.network.load_classifier", lambda _: classifier)
    out = tmp_path / "scores.h5"
    with pytest.raises(RunError, match="not finite"):
        export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", out=out))
    assert list(tmp_path.iterdir()) == []
