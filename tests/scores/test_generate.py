"""Generated jets: whole files, what is kept of the source, and the real command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.jets import tiny_config

from jetssl_cli.config import Layer
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import load_recipe, parse_recipe, schema_of
from jetssl_cli.errors import ConfigError, DataError, RunError
from jetssl_cli.objectives.gpt import GPTConfig
from jetssl_cli.objectives.masking import SubjetMaskConfig
from jetssl_cli.objectives.mpm import MPMConfig
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, load_config, load_pretrained, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.scores.generate import GenerateConfig, _without_truth, generate

pytestmark = pytest.mark.slow  # networks are trained first

MOST = 12
CLUSTERS = 20
METHODS = {
    "ssfm": SSFMConfig(time_features=4),
    "subjets": SSFMConfig(mask=SubjetMaskConfig(share=0.5), time_features=4),
    "gpt": GPTConfig(clusters=CLUSTERS),
    "mpm": MPMConfig(),
}


@pytest.fixture(scope="module")
def runs(jagged, tmp_path_factory):
    """A short pretraining with each method."""
    folder = tmp_path_factory.mktemp("runs")
    data = DataConfig(
        train=(jagged / "train.h5",),
        val=(jagged / "val.h5",),
        batch_size=16,
        max_constituents=MOST,
        num_val_jets=8,
    )
    for name, objective in METHODS.items():
        causal = {"causal": True, "registers": 1} if name == "gpt" else {}
        pretrain(
            PretrainConfig(
                out=folder / name,
                objective=objective,
                encoder=tiny_config(**causal),
                data=data,
                optim=OptimConfig(lr=1e-2),
                train=TrainConfig(steps=4),
                tracking=False,
            )
        )
    return folder


def whole(path):
    with JaggedFile(path) as file:
        return file.read()


def run(runs, jagged, name, out, **settings):
    settings = {"num_jets": 60, "steps": None if name == "gpt" else 3, **settings}
    return generate(GenerateConfig(run=runs / name, data=jagged / "test.h5", out=out, **settings))


def jets_of(arrays):
    """The constituents of each jet as a set of rows."""
    rows = np.column_stack([arrays.features, arrays.ids])
    return [{tuple(row) for row in jet} for jet in np.split(rows, arrays.offsets[1:-1])]


@pytest.mark.parametrize("name", ["ssfm", "subjets"])
def test_half_of_a_jet_is_kept_and_half_is_made(runs, jagged, tmp_path, name):
    report = run(runs, jagged, name, tmp_path / "out.h5")
    made, true = whole(tmp_path / "out.h5"), whole(jagged / "test.h5").between(0, 60).first(MOST)
    assert np.array_equal(made.sizes, true.sizes)
    kept = [len(one & two) for one, two in zip(jets_of(made), jets_of(true), strict=True)]
    if name == "ssfm":
        assert kept == [n - n // 2 for n in true.sizes]
    assert sum(kept) == true.sizes.sum() - report.num_constituents
    assert 0 < report.num_constituents < true.sizes.sum()
    number = next(row for row in report.distances if row.name == "constituents of a jet")
    assert number.distance == 0


def test_gpt_writes_whole_jets(runs, jagged, tmp_path):
    report = run(runs, jagged, "gpt", tmp_path / "out.h5")
    made, true = whole(tmp_path / "out.h5"), whole(jagged / "test.h5").between(0, 60)
    assert report.num_constituents == len(made.ids) == made.sizes.sum()
    assert not any(one & two for one, two in zip(jets_of(made), jets_of(true), strict=True))
    assert made.sizes.max() <= MOST
    _, _, objective = load_pretrained(runs / "gpt")
    centres = objective.encoder.scaling.constituents.inverse(objective.tokenizer.centres).numpy()
    apart = np.abs(made.features[:, None, :3] - centres[:, :3]).max(2)
    assert apart.min(1).max() == 0


@pytest.mark.parametrize("name", ["ssfm", "gpt"])
def test_jets_are_those_of_the_source_in_its_format(runs, jagged, tmp_path, name):
    report = run(runs, jagged, name, tmp_path / "out.h5")
    made, true = whole(tmp_path / "out.h5"), whole(jagged / "test.h5").between(0, 60)
    assert report.num_jets == report.num_compared == len(made) == 60
    assert np.array_equal(made.jets, true.jets)
    assert np.array_equal(made.labels, true.labels)
    with JaggedFile(tmp_path / "out.h5") as file, JaggedFile(jagged / "test.h5") as source:
        assert file.schema == source.schema
        assert file.precision == source.precision
        assert file.sources == [str(jagged / "test.h5")]
        neutral = np.isin(made.ids, file.schema.neutral_ids)
    assert (made.features[neutral, 3:] == 0).all()
    assert (made.features[~neutral, 4] > 0).all()  # an uncertainty
    later = made.rank > 0
    pt = made.features[:, 0]
    assert (pt[1:] <= pt[:-1])[later[1:]].all()
    assert (made.features[:, 0] > 0).all()
    assert (np.abs(made.features[:, 1:3]) <= 0.8001).all()


def test_jets_are_no_longer_than_the_format_allows(runs, samples, tmp_path):
    """The file says that its jets were cut at 5 constituents."""
    (file,) = (samples / "jetclass" / "test").glob("HToBB*.root")
    settings = {"recipe": load_recipe("jetclass"), "out": tmp_path / "short"}
    report = convert(ConvertConfig(sources=(file,), max_constituents=5, **settings))
    generate(GenerateConfig(run=runs / "gpt", data=report.files[0].output, out=tmp_path / "out.h5"))
    assert whole(tmp_path / "out.h5").sizes.max() <= 5


def test_truth_about_constituents_is_left_out():
    recipe = _without_truth(load_recipe("btag"))
    assert schema_of(recipe).truth == ()
    before = schema_of(load_recipe("btag"))
    assert before.truth
    assert schema_of(recipe) == before.model_copy(update={"truth": ()})
    assert parse_recipe(recipe.text, "again") == recipe


@pytest.mark.parametrize("name", ["ssfm", "gpt"])
def test_the_seed_decides(runs, jagged, tmp_path, name):
    for number, seed in enumerate((0, 0, 1)):
        run(runs, jagged, name, tmp_path / f"{number}.h5", seed=seed)
    first, again, other = (whole(tmp_path / f"{number}.h5") for number in range(3))
    assert np.array_equal(first.features, again.features)
    assert jets_of(first) != jets_of(other)


def test_several_batches_are_all_the_jets(runs, jagged, tmp_path):
    report = run(runs, jagged, "ssfm", tmp_path / "out.h5", num_jets=None, batch_size=77)
    with JaggedFile(jagged / "test.h5") as file:
        assert report.num_jets == file.num_jets > 2 * 77
    assert np.array_equal(whole(tmp_path / "out.h5").labels, whole(jagged / "test.h5").labels)


def test_distances_are_of_so_many_jets_only(runs, jagged, tmp_path, monkeypatch):
    monkeypatch.setattr("jetssl_cli.scores.generate.JETS_COMPARED", 30)
    report = run(runs, jagged, "ssfm", tmp_path / "out.h5", batch_size=20)
    assert (report.num_jets, report.num_compared) == (60, 40)


def test_a_network_that_answers_with_nonsense_leaves_no_file(runs, jagged, tmp_path, monkeypatch):
    loaded = load_pretrained(runs / "ssfm")
    with torch.no_grad():
        loaded[2].decoder.out.bias[0] = torch.nan
    monkeypatch.setattr("jetssl_cli.scores.generate.load_pretrained", lambda _: loaded)
    with pytest.raises(RunError, match="not finite"):
        run(runs, jagged, "ssfm", tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == []


def test_other_columns_are_refused(runs, jagged, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in (runs / "ssfm").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    text = (other / "schema.yaml").read_text()
    (other / "schema.yaml").write_text(text.replace("name: jet_pt", "name: jet_energy"))
    with pytest.raises(RunError, match=r"test\.h5: its jets are .* was trained on jet_energy"):
        generate(GenerateConfig(run=other, data=jagged / "test.h5", out=tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", ["ssfm", "gpt"])
def test_the_command(jetssl, runs, jagged, tmp_path, name):
    words = ("generate", runs / name, "--data", jagged / "test.h5", "--out", "out.h5")
    own = {"ssfm": ("--integration-steps", 2), "gpt": ("--temperature", 0.8)}
    done = jetssl(*words, "--num-jets", 20, *own[name])
    assert done.returncode == 0, done.stderr
    for word in ("distance", "pt [GeV]", "mass of a jet [GeV]", "20 jets"):
        assert word in done.stdout
    assert len(whole(tmp_path / "out.h5")) == 20


def test_the_output_is_not_replaced_by_chance(jetssl, runs, jagged, tmp_path):
    words = ("generate", runs / "gpt", "--data", jagged / "test.h5", "--out", "out.h5")
    (tmp_path / "out.h5").write_text("mine")
    before = (tmp_path / "out.h5").read_bytes()
    done = jetssl(*words, "--num-jets", 10)
    assert done.returncode == 2
    assert "out.h5: is there already; choose another name or --overwrite" in done.stderr
    assert (tmp_path / "out.h5").read_bytes() == before
    assert jetssl(*words, "--num-jets", 10, "--overwrite").returncode == 0
    assert len(whole(tmp_path / "out.h5")) == 10


def test_what_the_command_refuses(jetssl, runs, jagged, tmp_path):
    data = ("--data", jagged / "test.h5", "--out", "out.h5")
    cases = {
        (runs / "mpm", *data): "pretrained with mpm, which does not generate; ssfm fills in",
        (runs / "ssfm", *data, "--temperature", 0): "temperature = 0",
        (runs / "ssfm", *data, "--temperature", 0.5): "--temperature: is for gpt; ",
        (runs / "gpt", *data, "--integration-steps", 5): "--integration-steps: is for ssfm; ",
    }
    for words, message in cases.items():
        done = jetssl("generate", *words)
        assert done.returncode == 2, done.stdout
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out.h5").exists()


def test_what_is_refused(runs, jagged, tmp_path):
    data, out = jagged / "test.h5", tmp_path / "out.h5"
    no_jets = runs / "ssfm" / "config.yaml"
    for words, error, message in (
        ((runs, data, out), RunError, "is not a run folder"),
        ((runs / "gone", data, out), RunError, "no such run folder"),
        ((runs / "ssfm", no_jets, out), DataError, r"config\.yaml: "),
        ((runs / "ssfm", data, data), RunError, "is the file of the jets"),
        ((runs / "ssfm", data, tmp_path), RunError, "is a folder; --out is a file"),
    ):
        with pytest.raises(error, match=message):
            generate(GenerateConfig(**dict(zip(("run", "data", "out"), words, strict=True))))
    assert list(tmp_path.iterdir()) == []


def test_gpt_needs_a_causal_encoder_with_a_start(jagged, tmp_path):
    files = {"train": [str(jagged / "train.h5")], "val": [str(jagged / "val.h5")]}
    words = Layer("words", {"out": str(tmp_path / "run"), "data": files, "tracking": False})
    cfg = load_config(
        "gpt", "tiny", words, overrides=["encoder.causal=false", "objective.clusters=20"]
    )
    with pytest.raises(ConfigError, match=r"encoder\.causal = false: must be true"):
        pretrain(cfg)
    assert not (tmp_path / "run").exists()
