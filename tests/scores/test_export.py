"""The exported scores are those of the network, jet by jet, whatever the batch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import uproot
import yaml
from reference.jets import tiny_config

from jetssl_cli.data.hdf5 import attributes_of
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import concatenate
from jetssl_cli.data.stream import to_batch
from jetssl_cli.data.write import write
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, DataError, OutOfMemoryError, RunError
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs.finetune import finetune, load_classifier
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, load_pretrained, pretrain
from jetssl_cli.runs.probe import jet_vectors
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.scores.export import ExportConfig, export
from jetssl_cli.scores.network import Predictor, load_network
from jetssl_cli.scores.onnxnetwork import padded
from jetssl_cli.scores.provenance import group
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


def test_memory_that_does_not_suffice_is_one_clear_line(runs, jagged, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "_answer", lambda *_: np.empty(2**50))
    out = tmp_path / "scores.h5"
    with pytest.raises(OutOfMemoryError, match=r"Unable to allocate .*\): a smaller --batch-size"):
        export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", out=out))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
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


def test_where_the_scores_come_from_is_told(runs, scores, jagged):
    with h5py.File(scores) as file:
        told = attributes_of(file)
        assert file["config"].asstr()[0] == (runs / "fine" / "config.yaml").read_text()
    assert json.loads(told["jet_units"]) == ["GeV", "1", "rad", "GeV", "1"]
    for name, path in {
        "data_hash": jagged / "test.h5",
        "weights_hash": runs / "fine" / "model.safetensors",
    }.items():
        assert told[name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (told["seed"], told["precision"]) == (0, "32")
    assert told["group"] == group(runs / "fine")
    assert len(told["run_id"]) == len(told["group"]) == 16


def copied(source, folder, **changes):
    """A copy of a run's folder with other settings."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = settings
        for section in sections:
            place = place[section]
        place[name] = value
    (folder / "config.yaml").write_text(yaml.dump(settings))
    return folder


def test_a_group_is_all_but_seeds_and_places(runs, tmp_path):
    ours, fine = group(runs / "fine"), runs / "fine"
    other_seed = copied(runs / "pre", tmp_path / "pre", train__seed=5)
    same = {"train__seed": 7, "out": "elsewhere", "backbone": str(other_seed)}
    assert group(copied(fine, tmp_path / "same", **same)) == ours
    moved = copied(fine, tmp_path / "a" / "b", data__train=["/other/place/train.h5"])
    assert group(moved) == ours
    other_method = copied(runs / "pre", tmp_path / "pre2", objective__mask__share=0.4)
    for number, change in enumerate(
        (
            {"backbone": str(other_method)},
            {"train__steps": 5},
            {"optim__lr": 0.5},
            {"data__train": ["train_small.h5"]},
            {"random": True},
        )
    ):
        assert group(copied(fine, tmp_path / f"{number}", **change)) != ours


def test_a_backbone_is_found_from_where_the_run_began(runs, tmp_path, monkeypatch):
    copied(runs / "pre", tmp_path / "runs" / "pre")
    settings = {"out": "runs/fine", "backbone": "runs/pre"}
    fine = copied(runs / "fine", tmp_path / "runs" / "fine", **settings)
    assert group(fine) == group(runs / "fine")
    monkeypatch.chdir(tmp_path)
    assert group(fine) == group(runs / "fine")


def test_embeddings_are_the_means_of_the_vectors(runs, jagged, jets, tmp_path):
    """Of the backbone of either kind of run, whatever the box a jet is in."""
    chosen = np.arange(0, len(jets), 23)
    classifier, (_, _, objective) = load_classifier(runs / "fine")[2], load_pretrained(runs / "pre")
    for name, encoder in {"fine": classifier.encoder, "pre": objective.exported()}.items():
        out = tmp_path / f"{name}.h5"
        export(ExportConfig(run=runs / name, data=jagged / "test.h5", embeddings=out))
        with torch.inference_mode():
            wanted = [jet_vectors(encoder(one_jet(jets, jet, MOST))) for jet in chosen]
        with h5py.File(out) as file:
            assert attributes_of(file)["format"] == "jetssl-embeddings"
            assert file["vectors"].shape == (len(jets), 16)
            assert file["vectors"].dtype == np.float32
            found = file["vectors"][chosen]
            assert np.array_equal(file["labels"], jets.labels)
            assert np.array_equal(file["jets"], jets.jets)
        np.testing.assert_allclose(found, torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_a_tree_has_the_scores_in_the_same_order(runs, scores, jagged, jets, tmp_path):
    out = tmp_path / "scores.root"
    export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", root=out))
    with uproot.open(out) as file, h5py.File(scores) as wanted:
        tree = file["scores"]
        assert tree.classname == "TTree"
        for index, name in enumerate(json.loads(wanted.attrs["classes"])):
            column = tree[f"score_{name}"].array(library="np")
            np.testing.assert_allclose(column, wanted["scores"][:, index], rtol=1e-5, atol=1e-7)
        assert np.array_equal(tree["label"].array(library="np"), jets.labels)
        assert np.array_equal(tree["jet_pt"].array(library="np"), jets.jets[:, 0])
        assert json.loads(file["about"])["run_id"] == attributes_of(wanted)["run_id"]


@pytest.mark.parametrize("attention", ["padded", "reference"])
def test_every_back_end_gives_the_same(runs, scores, jagged, tmp_path, attention):
    out = tmp_path / "scores.h5"
    settings = {"attention": attention, "num_jets": 60, "batch_size": 25}
    report = export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", out=out, **settings))
    assert report.num_jets == 60
    with h5py.File(scores) as one, h5py.File(out) as two:
        np.testing.assert_allclose(two["logits"], one["logits"][:60], rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_its_scores_in_single(runs, scores, jagged, tmp_path):
    out = tmp_path / "scores.h5"
    settings = {"precision": "bf16-mixed", "num_jets": 200}
    export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", out=out, **settings))
    with h5py.File(scores) as one, h5py.File(out) as two:
        assert attributes_of(two)["precision"] == "bf16-mixed"
        logits, wanted = two["logits"][:], one["logits"][:200]
    error = np.abs(logits - wanted).max()
    assert 0 < error < 0.1
    rounded = torch.from_numpy(logits).bfloat16().float().numpy()
    assert (rounded != logits).mean() > 0.9  # not numbers of 8 bits


@pytest.mark.slow
def test_pools_and_boxes_do_not_show(runs, scores, jagged, tmp_path, monkeypatch):
    monkeypatch.setattr("jetssl_cli.scores.export.JETS_PER_POOL", 90)
    out = tmp_path / "scores.h5"
    export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", out=out, batch_size=7))
    with h5py.File(scores) as one, h5py.File(out) as two:
        np.testing.assert_allclose(two["logits"], one["logits"], rtol=1e-4, atol=1e-5)
        assert np.array_equal(two["labels"], one["labels"])


def relabelled(source, path, classes=None, label=None):
    """A data file with other names of the classes, or other labels."""
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "r+") as file:
        if classes is not None:
            schema = json.loads(file.attrs["schema"])
            file.attrs["schema"] = json.dumps({**schema, "classes": classes})
        if label is not None:
            file["jets/labels"][3] = label
    return path


def test_labels_go_by_the_names_of_the_classes(runs, jagged, jets, tmp_path):
    known = read_classes(jagged)
    data = relabelled(jagged / "test.h5", tmp_path / "data.h5", known[::-1])
    out = tmp_path / "scores.h5"
    export(ExportConfig(run=runs / "fine", data=data, out=out, num_jets=50))
    with h5py.File(out) as file:
        assert json.loads(file.attrs["classes"]) == known
        assert np.array_equal(file["labels"], 9 - jets.labels[:50])


def read_classes(jagged):
    with JaggedFile(jagged / "test.h5") as file:
        return list(file.schema.classes)


def test_unknown_classes_need_a_word(runs, jagged, tmp_path):
    names = ["signal", *read_classes(jagged)[1:]]
    data, out = relabelled(jagged / "test.h5", tmp_path / "data.h5", names), tmp_path / "s.h5"
    with pytest.raises(RunError, match=r"signal.*--unlabelled exports without labels"):
        export(ExportConfig(run=runs / "fine", data=data, out=out))
    settings = {"unlabelled": True, "num_jets": 50}
    export(ExportConfig(run=runs / "fine", data=data, out=out, **settings))
    with h5py.File(out) as file:
        assert (file["labels"][:] == -1).all()
    with pytest.raises(DataError, match="has no labels"):
        read_scores(out)


def test_a_label_that_is_none_is_damage(runs, jagged, tmp_path):
    data = relabelled(jagged / "test.h5", tmp_path / "data.h5", label=10)
    with pytest.raises(DataError, match="a label is not the index of a class"):
        export(ExportConfig(run=runs / "fine", data=data, out=tmp_path / "s.h5"))
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]


def test_outputs_are_not_inputs(runs, jagged, tmp_path):
    settings = {"run": runs / "fine", "data": jagged / "test.h5", "overwrite": True}
    with pytest.raises(ConfigError, match="nothing to write"):
        export(ExportConfig(**settings))
    with pytest.raises(RunError, match="is the file of the jets"):
        export(ExportConfig(root=jagged / "test.h5", **settings))
    with pytest.raises(RunError, match="is a file of the run"):
        export(ExportConfig(onnx=runs / "fine" / "model.safetensors", **settings))
    with pytest.raises(ConfigError, match="--out and --root are the same file"):
        export(ExportConfig(out=tmp_path / "a", root=tmp_path / "." / "a", **settings))
    with pytest.raises(RunError, match="is a folder; --embeddings is a file"):
        export(ExportConfig(embeddings=tmp_path, **settings))
    assert list(tmp_path.iterdir()) == []


def test_runs_that_are_spoilt_are_named(runs, jagged, tmp_path):
    out = tmp_path / "s.h5"

    def refused(run, match):
        with pytest.raises((RunError, ConfigError), match=match):
            export(ExportConfig(run=run, data=jagged / "test.h5", out=out))
        assert not out.exists()

    refused(tmp_path / "none", "no such run folder")
    bare = copied(runs / "fine", tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    refused(bare, r"model\.safetensors: no such file; did the run come to its end")
    cut = copied(runs / "fine", tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(cut, "not a readable safetensors file")
    refused(copied(runs / "fine", tmp_path / "later", horizon=3), "horizon = 3: no such setting")
    wider = copied(runs / "fine", tmp_path / "wider", encoder__width=32)
    refused(wider, "saved from another network")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError("broken")])
def test_an_interrupt_leaves_nothing(runs, jagged, tmp_path, monkeypatch, error):
    """In the middle, with three files begun; what was there before stays."""
    answer, calls = Predictor.__call__, []

    def interrupted(predictor, jets):
        calls.append(len(jets))
        if len(calls) == 2:
            raise error
        return answer(predictor, jets)

    monkeypatch.setattr("jetssl_cli.scores.export.JETS_PER_POOL", 40)
    monkeypatch.setattr(Predictor, "__call__", interrupted)
    (tmp_path / "s.h5").write_text("before")
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RunError):
        export(
            ExportConfig(
                run=runs / "fine",
                data=jagged / "test.h5",
                out=tmp_path / "s.h5",
                embeddings=tmp_path / "new" / "e.h5",
                root=tmp_path / "s.root",
                overwrite=True,
            )
        )
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
    assert (tmp_path / "s.h5").read_text() == "before"


@pytest.fixture(scope="module")
def onnx_file(runs, jagged):
    """The network as ONNX; it takes most of the time of this module."""
    out = runs / "fine.onnx"
    report = export(ExportConfig(run=runs / "fine", data=jagged / "test.h5", onnx=out))
    assert report.onnx_difference < 1e-5
    return out


def assert_onnx_is_torch(path, run, jets, sizes):
    """Scores of the file are those of the packed network, in batches of these sizes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    packed = Predictor(load_network(run), precision="32", attention="padded")
    wanted = packed(jets).scores
    start = 0
    while start < len(jets):
        for size in sizes:
            part = jets.between(start, min(start + size, len(jets)))
            inputs = padded(to_batch(part), max(1, int(part.sizes.max(initial=0))) + size % 3)
            feed = {name: x.numpy() for name, x in inputs.items()}
            scores, _ = session.run(["scores", "logits"], feed)
            assert np.abs(scores - wanted[start : start + len(part)]).max(initial=0) < 1e-4
            start = min(start + size, len(jets))
    assert wanted.std(0).min() > 1e-4  # the jets differ


@pytest.mark.slow
def test_the_onnx_file_is_the_network(runs, onnx_file, jets):
    """Jets of the sample, and one without any constituent."""
    nothing = jets.take(np.array([0]), most=0)
    assert nothing.sizes.tolist() == [0]
    assert_onnx_is_torch(
        onnx_file, runs / "fine", concatenate([nothing, jets.first(MOST)]), (1, 7, 1000)
    )


@pytest.mark.slow
def test_the_onnx_file_says_what_it_takes(runs, onnx_file):
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["jets"])[0] == {"name": "jet_pt", "unit": "GeV"}
    assert [one["unit"] for one in json.loads(told["constituents"])][:2] == ["GeV", "1"]
    assert json.loads(told["classes"])[:2] == ["QCD", "Tbl"]
    assert json.loads(told["ids"])[0] == "photon"
    assert told["max_constituents"] == str(MOST)
    weights = (runs / "fine" / "model.safetensors").read_bytes()
    assert told["weights_hash"] == hashlib.sha256(weights).hexdigest()
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "constituents": ["J", "N", 7],
        "mask": ["J", "N"],
        "jets": ["J", 5],
        "ids": ["J", "N"],
        "scores": ["J", 10],
        "logits": ["J", 10],
    }
    assert not [path for path in onnx_file.parent.iterdir() if "partial" in path.name]


@pytest.mark.slow
def test_the_onnx_file_is_the_network_on_many_jets(runs, onnx_file, jagged, jets, tmp_path):
    """10,000 jets: those of the sample, each time with other noise, through the data format."""
    rng = np.random.default_rng(0)
    with JaggedFile(jagged / "test.h5") as file:
        recipe = file.recipe
    with write(tmp_path / "many.h5", recipe, ["sample"]) as writer:
        for _ in range(20):
            noise = rng.normal(1, 0.05, jets.features.shape).astype(np.float32)
            writer.append(replace(jets, features=jets.features * noise))
    with JaggedFile(tmp_path / "many.h5") as file:
        many = file.read().first(MOST)
    assert len(many) == 10_000
    assert_onnx_is_torch(onnx_file, runs / "fine", many, (1, 7, 1000))
