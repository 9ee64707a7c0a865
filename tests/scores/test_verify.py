"""Real artefacts are sound; damaged, swapped, foreign and malicious ones are told from them."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from fuzz.targets import CORPUS
from reference.jets import tiny_config
from reference.numbered import RECIPE, jets_of
from safetensors.torch import load_file, save_file

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.write import write
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, DataError
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs import pretrain as pretrained
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.snapshot import CheckpointConfig, Snapshot, Snapshots
from jetssl_cli.runs.tracking import METRICS
from jetssl_cli.scores import onnxfile
from jetssl_cli.scores.export import ExportConfig, export
from jetssl_cli.scores.scorefile import write_scores
from jetssl_cli.scores.verify import VerifyConfig, verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(jagged, tmp_path_factory):
    """A folder with one artefact of each kind, and two runs that differ by their seed alone."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(jagged / "test.h5", folder / "jets.h5")
    files = {"train": (jagged / "train.h5",), "val": (jagged / "val.h5",)}
    data = DataConfig(**files, batch_size=16, max_constituents=12, num_val_jets=8)
    common = {"encoder": tiny_config(), "data": data, "tracking": False}
    short = TrainConfig(steps=1, precision="32", keep="best")
    pretrain(
        PretrainConfig(
            out=folder / "pre", objective=SSFMConfig(time_features=4), train=short, **common
        )
    )
    head = SupervisedConfig(pool=PoolConfig(width=8, heads=2))
    common |= {"backbone": folder / "pre", "objective": head}
    finetune(FinetuneConfig(out=folder / "fine", train=short, **common))
    again = short.model_copy(update={"seed": 1})
    finetune(FinetuneConfig(out=folder / "again", train=again, **common))
    export(
        ExportConfig(
            run=folder / "fine",
            data=folder / "jets.h5",
            out=folder / "scores.h5",
            embeddings=folder / "vectors.h5",
            onnx=folder / "net.onnx",
        )
    )
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """The same in a folder of its own, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def look(*paths):
    return list(verify(VerifyConfig(paths=paths)))


def refuse(path, *words):
    """It is not sound, and the error names it; what is beside it stays as it is."""
    (finding,) = look(path)
    assert finding.error is not None, finding.told
    told = str(finding.error)
    assert str(path) in told
    assert all(word in told for word in words), told
    assert "\n" not in told


def change(path, **attributes):
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)


def test_all_that_was_written_is_sound(whole):
    found = {finding.path.name: finding for finding in look(whole)}
    assert [finding.error for finding in found.values()] == [None] * 7
    told = {name: finding.told for name, finding in found.items()}
    assert told["jets.h5"].startswith(
        "data file, version 1, recipe jetclass: 500 jets of 10 classes"
    )
    assert told["jets.h5"].endswith("as merged")
    assert "score file, version 1, 500 jets of 10 classes" in told["scores.h5"]
    for name in ("scores.h5", "vectors.h5"):
        assert told[name].endswith("data unchanged, weights unchanged")
    assert told["net.onnx"].endswith("weights unchanged")
    assert "backbone.safetensors" in told["pre"]
    assert "recipe jetclass" in told["fine"]


def test_the_back_end_of_a_run_need_not_be_there(whole, monkeypatch):
    def refuse(backend):
        if backend != "auto":
            raise ConfigError("not on this machine")

    right = pretrained.load_pretrained
    monkeypatch.setattr("jetssl_cli.encoder.encoder.require", refuse)
    monkeypatch.setattr(
        "jetssl_cli.runs.verify.load_pretrained",
        lambda run: (with_back_end(right(run)[0]), *right(run)[1:]),
    )
    (found,) = look(whole / "pre")
    assert found.error is None


def with_back_end(cfg):
    encoder = cfg.encoder.model_copy(update={"attention": "varlen"})
    return cfg.model_copy(update={"encoder": encoder})


@pytest.mark.parametrize("name", ["jets.h5", "scores.h5", "vectors.h5", "net.onnx"])
@pytest.mark.parametrize("length", [0, 1000, -1])
def test_a_truncated_file_is_refused(copy, name, length):
    path = copy / name
    path.write_bytes(path.read_bytes()[:length])
    refuse(path)


def spoiled(path):
    """The bytes of a file with one bit flipped, in each array and each text of its attributes."""
    whole, found = path.read_bytes(), {}

    def visit(name, item):
        if hasattr(item, "chunks") and item.chunks:
            chunk = item.id.get_chunk_info(0)
            place = chunk.byte_offset + chunk.size // 2
            found[name] = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]

    with h5py.File(path) as file:
        file.visititems(visit)
        for name, value in file.attrs.items():
            text = value if isinstance(value, bytes) else b""
            half = len(text) // 2
            if text and text in whole:  # HDF5 leaves older copies in the file
                other = text[:half] + bytes([text[half] ^ 1]) + text[half + 1 :]
                found[name] = whole.replace(text, other)
    return found


@pytest.mark.parametrize("name", ["jets.h5", "scores.h5", "vectors.h5"])
def test_a_flipped_bit_is_refused_in_every_array_and_attribute(copy, name):
    path = copy / name
    changed = spoiled(path)
    assert len(changed) > 6
    for part, content in changed.items():
        path.write_bytes(content)
        (finding,) = look(path)
        assert finding.error is not None, part


@pytest.mark.parametrize("name", ["jagged/jetclass.h5", "scores/classes.h5"])
def test_a_flipped_bit_anywhere_in_the_smallest_files_is_refused_or_changes_nothing(name, tmp_path):
    whole = (CORPUS / name).read_bytes()
    path = tmp_path / "a.h5"
    path.write_bytes(whole)
    (wanted,) = look(path)
    assert wanted.error is None
    refused = 0
    for place in range(0, len(whole), 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        (finding,) = look(path)
        assert finding.error is not None or finding.told == wanted.told, place
        refused += finding.error is not None
    assert refused > 0.8 * len(range(0, len(whole), 53))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["net.onnx", "fine/model.safetensors", "pre/backbone.safetensors"])
def test_a_flipped_bit_of_weights_is_refused(copy, name, place):
    path = copy / name
    changed = bytearray(path.read_bytes())
    changed[int(place * len(changed))] ^= 1
    path.write_bytes(changed)
    refuse(path)
    if name.startswith("fine"):
        (finding,) = look(copy / "fine")
        assert str(path) in str(finding.error)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_cache_is_sound_until_it_is_damaged(jagged, tmp_path, place):
    """It has no layout and no version, as weights of runs have."""
    path = Path(shutil.copy(min(jagged.glob(".train.scaling-*")), tmp_path))
    (finding,) = look(path)
    assert finding.error is None
    assert finding.told.startswith("cache of a scaling, ")
    changed = bytearray(path.read_bytes())
    changed[int(place * len(changed))] ^= 1
    path.write_bytes(changed)
    refuse(path, "without it, the fit is made again")


def test_another_version_is_refused_with_the_reason(copy):
    change(copy / "jets.h5", version=2)
    refuse(copy / "jets.h5", "has the version 2, expected 1")
    change(copy / "scores.h5", version=0)
    refuse(copy / "scores.h5", "has the version 0, expected 1")
    model = copy / "fine" / "model.safetensors"
    weights, facts = weightfile.read_weights(model)
    told = json.dumps({**facts, "layout": "2", "code": "9.9"})
    save_file(weights, model, metadata={"jetssl": told})
    refuse(model, "layout 2, expected 1", "another version", "9.9")


def test_swapped_weights_and_settings_are_refused(copy):
    """The networks are equal in shape: their hashes alone tell them apart."""
    shutil.copy(copy / "again" / "model.safetensors", copy / "fine" / "model.safetensors")
    (finding,) = look(copy / "fine")
    assert "belongs to another config.yaml" in str(finding.error)
    schema_file = copy / "again" / "schema.yaml"
    schema_file.write_text(schema_file.read_text().replace("QCD", "light"))
    (finding,) = look(copy / "again")
    assert "belongs to another schema.yaml" in str(finding.error)


def test_scores_of_other_weights_or_data_are_refused(whole, copy):
    for path in ("scores.h5", "vectors.h5"):
        change(copy / path, run=str(copy / "fine"), data=str(copy / "jets.h5"))
        with h5py.File(copy / path, "r+") as file:
            del file.attrs["attributes_hash"]
        assert look(copy / path)[0].error is None
    shutil.copy(whole / "again" / "model.safetensors", copy / "fine" / "model.safetensors")
    refuse(copy / "vectors.h5", "made of other weights", "model.safetensors")
    (copy / "jets.h5").write_bytes(b"other")
    refuse(copy / "scores.h5", "made of other data", "jets.h5")
    shutil.rmtree(copy / "fine")
    (copy / "jets.h5").unlink()
    assert look(copy / "scores.h5")[0].told.endswith(
        "data not there to compare, weights not there to compare"
    )


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["jets.h5", "net.onnx", "fine/model.safetensors", "new.pt"])
def test_a_pickle_is_never_opened(copy, monkeypatch, name):
    monkeypatch.chdir(copy)
    torch.save({"bomb": Bomb()}, copy / name)
    refuse(copy / name, "is a pickle")
    assert any("is a pickle" in str(finding.error) for finding in look(copy))
    assert not (copy / "exploded").exists()


@pytest.mark.parametrize("how", ["link", "soft", "storage", "virtual"])
def test_content_in_other_files_is_never_followed(copy, how):
    path = copy / "jets.h5"
    with h5py.File(path, "r+") as file:
        table = file["constituents/features"][()]
        del file["constituents/features"]
        (copy / "raw").write_bytes(table.tobytes())
        if how == "link":
            with h5py.File(copy / "other", "w") as other:
                other["x"] = table
            file["constituents/features"] = h5py.ExternalLink(str(copy / "other"), "x")
        elif how == "soft":
            file["hidden"] = table
            file["constituents/features"] = h5py.SoftLink("/hidden")
        elif how == "storage":
            file["constituents"].create_dataset(
                "features",
                table.shape,
                table.dtype,
                external=[(str(copy / "raw"), 0, table.nbytes)],
            )
        else:
            layout = h5py.VirtualLayout(table.shape, table.dtype)
            layout[:] = h5py.VirtualSource(str(copy / "other"), "x", table.shape)
            file["constituents"].create_virtual_dataset("features", layout)
    refuse(path, "/constituents/features is a link or lies in another file")
    with pytest.raises(DataError, match="neither is followed"):
        JaggedFile(path)


def test_an_onnx_file_with_weights_elsewhere_is_refused(copy):
    path = copy / "net.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    refuse(path, "lies in another file")


def test_an_onnx_file_needs_the_extra(whole, monkeypatch):
    monkeypatch.setattr(onnxfile, "find_spec", lambda name: name != "onnx" or None)
    (finding,) = look(whole / "net.onnx")
    assert isinstance(finding.error, ConfigError)
    assert "net.onnx: the package onnx is missing; install the extra 'onnx'" in str(finding.error)


def broken(what):
    """Jets with one thing wrong in jet 5."""
    jets = jets_of(0, 20)
    features, of_jets, labels, ids = (
        x.copy() for x in (jets.features, jets.jets, jets.labels, jets.ids)
    )
    row = int(jets.offsets[5])
    if what == "constituent":
        features[row, 2] = np.nan
    elif what == "jet":
        of_jets[5, 0] = np.inf
    elif what == "label":
        labels[5] = 10
    else:
        ids[row] = 8
    return replace(jets, features=features, jets=of_jets, labels=labels, ids=ids)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("constituent", " = nan is not finite"),
        ("jet", "= inf is not finite"),
        ("label", "label 10 is not in 0..9"),
        ("id", "particle class 8 is not in 0..7"),
    ],
)
def test_values_that_are_none_are_refused(tmp_path, what, words):
    path = tmp_path / "jets.h5"
    with write(path, RECIPE, []) as writer:
        writer.append(broken(what))
    refuse(path, "damaged: jet 5: ", words)


def test_jets_that_were_exchanged_have_another_checksum(copy):
    path = copy / "jets.h5"
    with h5py.File(path, "r+") as file:
        labels = file["jets/labels"]
        labels[0] = (labels[0] + 1) % 10
    refuse(path, "its jets have the checksum")


def test_scores_that_contradict_the_logits_are_refused(copy):
    path = copy / "scores.h5"
    with h5py.File(path, "r+") as file:
        file["scores"][7] = np.roll(file["scores"][7], 1)
    refuse(path, "jet 7: its scores are not those of its logits")


@pytest.mark.parametrize("name", ["scores", "logits", "jets", "labels"])
def test_rows_are_looked_at_to_the_last(copy, monkeypatch, name):
    """Some at a time, of which the last are fewer."""
    path = copy / "scores.h5"
    monkeypatch.setattr("jetssl_cli.scores.verify.ROWS", 64)
    assert look(path)[0].error is None
    with h5py.File(path, "r+") as file:
        file[name][-1] = 99 if name == "labels" else np.inf
    refuse(path, "jet 499: ")
    vectors = copy / "vectors.h5"
    with h5py.File(vectors, "r+") as file:
        file["vectors"][-1, -1] = np.nan
    refuse(vectors, "jet 499: a number of vectors is not finite")


def test_a_large_file_takes_no_more_memory(tmp_path):
    rng, peaks = np.random.default_rng(0), []
    for number in (150_000, 450_000):
        path = tmp_path / f"{number}.h5"
        scores = rng.dirichlet(np.ones(10), number).astype(np.float32)
        with write_scores(
            path, classes=tuple("abcdefghij"), jet_columns="x", run="", data=""
        ) as to:
            labels, jets = np.zeros(number, int), np.zeros((number, 1))
            to.append(scores, np.log(scores + np.float32(1e-30)), labels, jets)
        tracemalloc.start()
        assert look(path)[0].error is None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    labels = 300_000 * 16  # with what compares them
    assert peaks[1] - peaks[0] < labels


def test_a_file_of_no_jets_says_so(tmp_path):
    path, none = tmp_path / "a.h5", np.zeros((0, 2))
    with write_scores(path, classes=("a", "b"), jet_columns=("x", "y"), run="", data="") as to:
        to.append(none, none, np.zeros(0, int), none)
    refuse(path, f"{path}: holds no jets")


def test_labels_that_are_unknown_are_sound(whole, tmp_path):
    out = tmp_path / "scores.h5"
    export(ExportConfig(run=whole / "fine", data=whole / "jets.h5", out=out, unlabelled=True))
    assert look(out)[0].error is None


def test_runs_that_have_not_ended(whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (checkpoint.CONFIG, checkpoint.SCHEMA):
        shutil.copy(whole / "pre" / name, run)
    (run / METRICS).write_text('{"step": 1}\n{"st')
    assert look(run)[0].told == "pretrain run, not at its end, no snapshot yet"
    snapshots = Snapshots(run, CheckpointConfig())
    facts = {
        "code": "1",
        "steps": 40,
        "seconds": 1.0,
        "reader": {},
        "latest": {},
        "best": (1, 0, 0),
    }
    snapshots.write(Snapshot({"x": torch.arange(9.0)}, facts))
    assert look(run)[0].told == "pretrain run, not at its end, snapshot after step 40"
    (path,) = snapshots.files()
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    assert "its hash is not that of its content" in str(look(run)[0].error)
    (run / METRICS).write_text('{"st\n{"step": 1}\n')
    assert "line 1 is not a measurement" in str(look(run)[0].error)


def test_weights_without_a_hash_are_told(copy):
    model = copy / "fine" / "model.safetensors"
    save_file(load_file(model), model, metadata={"layout": "1"})
    assert "saved without a hash by an earlier version" in look(copy / "fine")[0].told


def test_what_is_not_there_and_what_is_none(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        look(tmp_path / "none")
    with pytest.raises(DataError, match="holds no artefact"):
        look(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    refuse(tmp_path / "a.txt", "is no artefact of jetssl")


def test_the_command_goes_on_after_what_is_damaged(jetssl, copy):
    (copy / "jets.h5").write_bytes(b"no")
    done = jetssl("verify", copy / "jets.h5", copy / "fine")
    assert done.returncode == 2
    assert done.stdout.startswith(f"{copy / 'fine'}: sound: finetune run of supervised: model")
    assert done.stdout.count("\n") == 1
    assert f"error: {copy / 'jets.h5'}: not a readable HDF5 file" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 1 of 2 artefacts are not sound"
    assert jetssl("verify", copy / "fine", copy / "pre").returncode == 0
