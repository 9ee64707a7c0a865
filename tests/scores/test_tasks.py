"""Score files and tables of the tasks, against plain definitions and scikit-learn."""

from __future__ import annotations

import csv
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from reference.tracks import RECIPE, make_backbone, true_jets, tune
from reference.vertices import grouped, pairs_of, rows_of
from sklearn.metrics import (
    adjusted_rand_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    roc_auc_score,
)

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.write import write
from jetssl_cli.errors import ConfigError, DataError, RunError
from jetssl_cli.runs.finetune import load_classifier, load_finetuned
from jetssl_cli.scores import sic, tracks, vertices
from jetssl_cli.scores.evaluate import EvaluateConfig, evaluate
from jetssl_cli.scores.export import ExportConfig, export
from jetssl_cli.scores.rows import Row
from jetssl_cli.scores.scorefile import read_scores, write_scores
from jetssl_cli.scores.tables import render, to_csv
from jetssl_cli.scores.trackfile import TrackSet, read_tracks
from jetssl_cli.scores.verify import VerifyConfig, verify

ORIGINS = ("primary", "from_c", "from_b", "other")
MIXTURE = "data.mixture={signal: bottom, background: light, num_signal: %d, num_background: 60}"
POOL = "objective.pool={width: 8, heads: 2}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A backbone, a run and a score file of each task; with tracks of unknown truth."""
    folder = tmp_path_factory.mktemp("tasks")
    make_backbone(folder)
    tune(folder, "track-origin", "track-origin", 6)
    tune(folder, "vertex", "vertex", 6)
    tune(folder, "classify", "classify", 2, POOL)
    for number in (40, 100):
        tune(folder, "cwola", f"cwola-{number}", 4, MIXTURE % number, POOL)
    for run in ("track-origin", "vertex", "classify", "cwola-40", "cwola-100"):
        out = folder / f"{run}.scores.h5"
        export(ExportConfig(run=folder / run, data=folder / "test.h5", out=out, batch_size=70))
    return folder


def test_score_files_of_tasks_are_sound(folder):
    paths = tuple(sorted(folder.glob("*.scores.h5")))
    found = {x.path.name.removesuffix(".scores.h5"): x for x in verify(VerifyConfig(paths=paths))}
    assert {name: x.error for name, x in found.items()} == dict.fromkeys(found)
    for task in ("track-origin", "vertex", "cwola-40"):
        assert found[task].told.endswith("data unchanged, weights unchanged")
    for task in ("track-origin", "vertex"):
        assert f"version 1, of the task {task}, 250 jets with" in found[task].told


@pytest.mark.parametrize(
    ("task", "array", "value", "words"),
    [
        ("track-origin", "scores", 0.9, "do not sum to 1"),
        ("track-origin", "jets", math.nan, "a number of jets is not finite"),
        ("track-origin", "labels", 3, "label 3 is not in 0..2"),
        ("vertex", "pairs", 1.5, "scores of pairs, from 0 to 1"),
        ("vertex", "vertices", 99, "no tracks for"),
    ],
)
@pytest.mark.parametrize("place", [0, -1])
def test_damaged_score_files_of_tasks_are_refused(
    folder, tmp_path, monkeypatch, task, array, value, words, place
):
    """Some rows at a time, to the last."""
    path = tmp_path / "scores.h5"
    shutil.copy(folder / f"{task}.scores.h5", path)
    monkeypatch.setattr("jetssl_cli.scores.verify.ROWS", 64)
    (finding,) = verify(VerifyConfig(paths=(path,)))
    assert finding.error is None
    with h5py.File(path, "r+") as file:
        file[array][place] = value
    (finding,) = verify(VerifyConfig(paths=(path,)))
    assert words in str(finding.error)
    if array == "jets":
        assert f"jet {place % 250}:" in str(finding.error)


def rows(folder, *names):
    paths = tuple(folder / f"{name}.scores.h5" for name in names)
    return evaluate(EvaluateConfig(scores=paths, tracking=False))


def test_scores_of_tracks_are_those_of_the_network(folder):
    _, _, network = load_finetuned(folder / "track-origin")
    (batch,) = JetStream([folder / "test.h5"], batch_size=1000, truth={"origin": ORIGINS})
    with torch.inference_mode():
        wanted = network.track_logits(batch).softmax(1).numpy()
    with h5py.File(folder / "track-origin.scores.h5") as file:
        np.testing.assert_allclose(file["scores"], wanted, rtol=1e-4, atol=1e-6)
        assert np.array_equal(file["truth"], batch.truth[:, 0])
        assert np.array_equal(file["offsets"], batch.packing.host)
        assert np.array_equal(file["labels"], batch.labels)
        assert np.array_equal(file["jets"], batch.jets)
        assert json.loads(file.attrs["classes"]) == list(ORIGINS)
        assert json.loads(file.attrs["jet_classes"]) == ["light", "charm", "bottom"]


def test_balanced_accuracy_is_that_of_scikit_learn(folder):
    with h5py.File(folder / "track-origin.scores.h5") as file:
        truth, guess = file["truth"][()], file["scores"][()].argmax(1)
    known = truth >= 0
    assert not known.all()
    (row,) = rows(folder, "track-origin")
    wanted = balanced_accuracy_score(truth[known], guess[known])
    assert row.balanced_accuracy.value == pytest.approx(wanted)
    recalls = recall_score(truth[known], guess[known], average=None)
    assert [found.value for found in row.recall] == pytest.approx(recalls.tolist())
    assert np.array_equal(row.confusion, confusion_matrix(truth[known], guess[known]))


def test_the_error_of_the_balanced_accuracy_is_the_spread_over_samples_of_jets():
    """Tracks of a jet are right or wrong together: three times as many tell nothing new."""
    rng = np.random.default_rng(0)

    def sample():
        jets = np.arange(400)
        truth = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
        guess = np.where(rng.random(400) < [[0.9, 0.6, 0.4][c] for c in truth], truth, 0)
        return (np.repeat(x, 3) for x in (truth, guess, jets))

    found = [tracks.balanced_accuracy(*sample(), 3) for _ in range(300)]
    spread = np.std([balanced.value for balanced, _ in found])
    errors = [(balanced.high - balanced.low) / 2 for balanced, _ in found]
    assert np.mean(errors) == pytest.approx(spread, rel=0.12)
    for index in range(3):
        spread = np.std([recalls[index].value for _, recalls in found])
        errors = [(recalls[index].high - recalls[index].low) / 2 for _, recalls in found]
        assert np.mean(errors) == pytest.approx(spread, rel=0.15)


def test_classes_without_tracks_are_left_out():
    truth, guess, jet = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2]), np.arange(4)
    balanced, recalls = tracks.balanced_accuracy(truth, guess, jet, 4)
    assert balanced.value == pytest.approx(balanced_accuracy_score(truth, guess)) == 0.75
    assert [found.value for found in recalls] == [0.5, None, 1.0, None]


def test_vertices_are_what_the_pairs_above_the_threshold_connect(folder):
    _, _, network = load_finetuned(folder / "vertex")
    (batch,) = JetStream([folder / "test.h5"], batch_size=1000, truth={"vertex": None})
    with h5py.File(folder / "vertex.scores.h5") as file:
        scores, found = file["pairs"][()], file["vertices"][()]
        threshold = float(file.attrs["threshold"])
        assert np.array_equal(file["truth"], batch.truth[:, 0])
        significance = (batch.features[:, 3].abs() / batch.features[:, 4]).numpy()
        assert np.array_equal(file["displaced"], significance > 3)
    assert threshold == pytest.approx(float(network.threshold))
    pairs = dict(zip(pairs_of(batch), (scores > threshold).tolist(), strict=True))
    group = grouped(pairs, len(found))
    several = 0
    for jet in rows_of(batch):
        names = list(dict.fromkeys(group[row] for row in jet))
        assert found[list(jet)].tolist() == [names.index(group[row]) for row in jet]
        several += len(names) > 1
    assert several > 10


def test_the_adjusted_rand_index_by_number_of_vertices_is_that_of_scikit_learn(folder):
    with h5py.File(folder / "vertex.scores.h5") as file:
        offsets, truth = file["offsets"][()], file["truth"][()]
        guesses = {
            "adjusted_rand": file["vertices"][()],
            "one_vertex": np.zeros(len(truth)),
            "displaced": file["displaced"][()],
        }
    found = {name: {} for name in guesses}
    for first, last in pairwise(offsets):
        known = first + np.flatnonzero(truth[first:last] >= 0)
        if len(known) < 2:
            continue
        number = len(np.unique(truth[known]))
        for name, guess in guesses.items():
            value = adjusted_rand_score(truth[known], guess[known])
            keys = ("all", str(number) if number < 4 else "4+", *["2+"] * (number > 1))
            for key in keys:
                found[name].setdefault(key, []).append(value)
    (row,) = rows(folder, "vertex")
    assert [line.vertices for line in row.by_vertices] == ["1", "2", "3", "4+", "2+", "all"]
    for line in row.by_vertices:
        assert line.num_jets == len(found["adjusted_rand"][line.vertices]) > 0
        for name, values in found.items():
            estimate = getattr(line, name)
            wanted = values[line.vertices]
            assert estimate.value == pytest.approx(np.mean(wanted))
            if np.std(wanted) > 0:
                error = np.std(wanted, ddof=1) / math.sqrt(len(wanted))
                assert (estimate.high - estimate.low) / 2 == pytest.approx(error)
        exact = np.mean(np.array(found["adjusted_rand"][line.vertices]) == 1)
        assert line.exact.value == pytest.approx(exact)


@pytest.mark.parametrize("pairs", [0, 50, 10_000])
def test_jets_are_judged_the_same_some_at_a_time(folder, pairs):
    found = read_tracks(folder / "vertex.scores.h5", "vertex", "vertices", "displaced")
    sizes = np.diff(found.offsets)
    most = int((sizes * (sizes - 1) // 2).max())
    one, other = vertices.judge(found), vertices.judge(found, most + pairs)
    for name in ("vertices", "index", "one_vertex", "displaced"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_jet_of_too_many_tracks_is_told_before_it_takes_memory():
    tracks = 100_000
    zeros = np.zeros(tracks, np.int32)
    offsets = np.array([0, 2, tracks])
    found = TrackSet(Path("s.h5"), "run", offsets, zeros, {"vertices": zeros}, {})
    with pytest.raises(DataError, match=r"s\.h5: jet 1 has 99,998 tracks, too many"):
        vertices.judge(found)


def test_scores_of_cwola_are_those_of_signal_and_background_alone(folder):
    found = read_scores(folder / "cwola-100.scores.h5")
    _, schema, network = load_classifier(folder / "cwola-100")
    assert schema.classes == ("M2", "M1")
    assert found.classes == ("light", "bottom")
    (batch,) = JetStream([folder / "test.h5"], batch_size=1000)
    chosen = (batch.labels != 1).numpy()
    with torch.inference_mode():
        wanted = network.logits(batch).softmax(1).numpy()[chosen]
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.labels, (batch.labels.numpy()[chosen] == 2).astype(int))
    (row,) = rows(folder, "cwola-100")
    assert row.auc.value == pytest.approx(roc_auc_score(found.labels, found.scores[:, 1]))
    assert (row.num_signal, row.num_background, row.signal) == (100, 60, "bottom")


def plain_sic(signal, background):
    """All cuts: (TPR, FPR, passing background jets)."""
    for cut in sorted({*signal, *background}):
        passing = sum(score >= cut for score in background)
        tpr = sum(score >= cut for score in signal) / len(signal)
        yield tpr, passing / len(background), passing


def cwola_file(path, logits, labels, **mixture):
    """A score file of cwola: p of the signal is the sigmoid of ``logits``."""
    both = torch.tensor(np.stack([np.zeros_like(logits), logits], 1), dtype=torch.float32)
    said = {"signal": "S", "background": "B", "num_signal": 1, "num_background": 2, "seed": 0}
    about = {"task": "cwola", "mixture": json.dumps(said | mixture)}
    with write_scores(
        path, classes=("B", "S"), jet_columns=["pt"], run="r", data="d", more=about
    ) as writer:
        jets = np.zeros((len(labels), 1))
        writer.append(both.softmax(1).numpy(), both.numpy(), labels, jets)
    return path


def test_jets_of_cwola_are_told_apart_where_the_score_is_rounded_to_1(tmp_path):
    """Half of the signal has a p that is 1 in float32, and so has some background."""
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(0, 6, 20_000), rng.normal(16, 4, 20_000)])
    logits = logits.astype(np.float32).astype(np.float64)
    labels = np.repeat([0, 1], 20_000)
    path = cwola_file(tmp_path / "a.h5", logits, labels)
    found = sic.evaluate(path)
    assert (read_scores(path).scores[labels == 0, 1] == 1).sum() > 25
    best, at = sic.improvements(logits[labels == 1], logits[labels == 0])
    assert found.best.value.value == pytest.approx(best.value.value, rel=0.01)
    assert found.at[100].value.value == pytest.approx(at[100].value.value, rel=0.01)
    assert found.auc.value == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ({"num_signal": "x"}, "num_signal: Input should be a valid integer"),
        ({"num_background": None}, "num_background: how many is not told"),
        ({"signal": "B"}, "signal and background are both 'B'"),
        ({"signal": "T"}, "holds no jets of T, or none of B"),
        ({"a\nb": 1}, r"a\\nb: Extra inputs"),
    ],
)
def test_cwola_files_with_a_damaged_mixture_are_refused(tmp_path, mixture, words):
    path = cwola_file(tmp_path / "a.h5", np.arange(4.0), np.array([0, 1, 0, 1]), **mixture)
    with pytest.raises(DataError, match=words) as caught:
        sic.evaluate(path)
    assert str(caught.value).startswith(f"{path}: ")
    with h5py.File(path, "r+") as file:
        file.attrs["mixture"] = np.bytes_(b"[" * 5000)
    with pytest.raises(DataError, match="damaged: mixture: not JSON"):
        sic.evaluate(path)


@pytest.mark.parametrize("digits", [1, 6])
def test_significance_improvement_is_that_of_the_definition(digits):
    """With one digit there are many ties."""
    rng = np.random.default_rng(0)
    signal = (rng.normal(1.5, 1, 300)).round(digits)
    background = rng.normal(0, 1, 700).round(digits)
    cuts = [cut for cut in plain_sic(signal, background) if cut[2] >= 25]
    best, at = sic.improvements(signal, background)
    assert best.value.value == pytest.approx(max(t / math.sqrt(f) for t, f, _ in cuts))
    for rejection, point in at.items():
        allowed = [(f, t) for t, f, _ in cuts if f <= 1 / rejection]
        if not allowed:
            assert point is None
            continue
        f, t = max(allowed)
        assert (point.background, point.signal) == (f, t)
        assert point.value.value == pytest.approx(t / math.sqrt(f))
    assert [rejection for rejection, point in at.items() if point] == [10]


def test_the_error_of_the_improvement_is_its_spread():
    rng = np.random.default_rng(1)
    points = [
        sic.improvements(rng.normal(1, 1, 400), rng.normal(0, 1, 2000))[1][10] for _ in range(300)
    ]
    cut = 1.2816  # fixed, as the error has it
    values = []
    for _ in range(300):
        tpr = (rng.normal(1, 1, 400) >= cut).mean()
        values.append(tpr / math.sqrt((rng.normal(0, 1, 2000) >= cut).mean()))
    errors = [(point.value.high - point.value.low) / 2 for point in points]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_no_cut_improves_nothing():
    best, _ = sic.improvements(np.zeros(50), np.zeros(80))
    assert best.value.value == 1
    assert best.background == 1


def test_tables_have_a_line_for_each_part_of_each_run(folder):
    text = render(rows(folder, "cwola-40", "cwola-100"), format="markdown")
    lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert lines[2:] == ["cwola-40", "cwola-100"]
    assert "max SIC" in text
    one, other = rows(folder, "cwola-40", "cwola-100")
    assert one.at[1000] is None
    reached = one.model_copy(update={"at": {**one.at, 1000: one.best}})
    for pair in ([reached, other], [other, reached], [other]):
        found = list(csv.DictReader(to_csv(pair).splitlines()))
        assert [bool(line["at 1000_low"]) for line in found] == [row is reached for row in pair]
    text = to_csv(rows(folder, "vertex"))
    assert text.splitlines()[0].startswith("scores,run,vertices,jets,ARI,ARI_low,ARI_high")
    assert len(text.splitlines()) == 7
    assert all(
        "confusion" in row
        for row in json.loads(render(rows(folder, "track-origin"), format="json"))
    )


def test_every_format_is_written(folder, tmp_path):
    for name in ("track-origin", "vertex", "cwola-40"):
        out = tmp_path / name
        paths = (folder / f"{name}.scores.h5",)
        evaluate(EvaluateConfig(scores=paths, out=out, tracking=False))
        assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".json", ".md", ".tex"]


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        ("--plots", {"plots": Path("plots")}),
        ("--report", {"report": Path("report.html")}),
        ("--compare", {"compare": ("vertex", "vertex")}),
        ("--group", {"groups": ("a=*",)}),
        ("--confusion", {"confusion": True}),
    ],
)
def test_what_is_for_jets_is_refused(folder, option, asked):
    cfg = EvaluateConfig(scores=(folder / "vertex.scores.h5",), tracking=False, **asked)
    with pytest.raises(ConfigError, match=f"{option}: is for scores of the classes of jets"):
        evaluate(cfg)


def test_scores_of_different_tasks_are_not_put_into_one_table(folder):
    with pytest.raises(DataError, match=r"of the task vertex, .* of the task track-origin"):
        rows(folder, "track-origin", "vertex")
    with pytest.raises(DataError, match=r"of classes of jets, .* of the task vertex"):
        rows(folder, "vertex", "classify")


def test_scores_of_cwola_are_scores_of_jets_as_well(folder, tmp_path):
    """Next to those of another classifier of the same classes they are evaluated like these."""
    plain = tmp_path / "plain.h5"
    plain.write_bytes((folder / "cwola-40.scores.h5").read_bytes())
    with h5py.File(plain, "r+") as file:
        del file.attrs["task"]
    paths = (plain, folder / "cwola-100.scores.h5")
    found = evaluate(EvaluateConfig(scores=paths, tracking=False))
    assert all(isinstance(row, Row) for row in found)


def test_chunks_without_signal_and_background_are_passed_over(folder, tmp_path):
    """As in a file that is sorted by class; what is told counts the jets that are written."""
    with JaggedFile(folder / "test.h5") as file:
        jets = file.read()
    with write(tmp_path / "sorted.h5", RECIPE, []) as writer:
        writer.append(jets.take(np.argsort(jets.labels, kind="stable")))
    found = []
    for data, size in ((folder / "test.h5", 70), (tmp_path / "sorted.h5", 7)):
        out = tmp_path / f"{size}.h5"
        report = export(ExportConfig(run=folder / "cwola-100", data=data, out=out, batch_size=size))
        scores = read_scores(out)
        assert report.num_jets == len(scores.labels) == (jets.labels != 1).sum()
        found.append(np.sort(scores.scores[:, 1]))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_a_run_of_another_task_is_no_classifier(folder):
    with pytest.raises(RunError, match="was trained for vertex, not to classify jets"):
        load_classifier(folder / "vertex")


def test_jets_of_a_missing_class_are_told(folder, tmp_path):
    jets = true_jets(50, 0)
    path = tmp_path / "light.h5"
    with write(path, RECIPE, []) as writer:
        writer.append(jets.take(np.flatnonzero(jets.labels < 2)))
    out = tmp_path / "out.h5"
    with pytest.raises(DataError, match=r"light\.h5: has no jets of bottom"):
        export(ExportConfig(run=folder / "cwola-40", data=path, out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("track-origin", lambda file: file["truth"].resize(5, 0), "5 tracks have truth"),
        (
            "track-origin",
            lambda file: file["truth"].write_direct(-np.ones(file["truth"].shape, np.int32)),
            "no track has a known origin",
        ),
        ("track-origin", lambda file: file["scores"].resize(3, 1), "expected 4 finite scores"),
        ("vertex", lambda file: file["vertices"].resize(5, 0), "5 tracks have vertices"),
        ("vertex", lambda file: file.__delitem__("vertices"), "no scores of the task vertex"),
        ("vertex", lambda file: file["offsets"].resize(1, 0), "offsets"),
    ],
)
def test_damaged_score_files_are_refused(folder, tmp_path, name, change, told):
    path = tmp_path / "damaged.h5"
    path.write_bytes((folder / f"{name}.scores.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=told):
        (tracks if name == "track-origin" else vertices).evaluate(path)


def test_a_network_that_answers_no_numbers_leaves_no_scores(folder, tmp_path, monkeypatch):
    loaded = load_finetuned(folder / "vertex")
    with torch.no_grad():
        loaded[2].project.bias[0] = torch.nan
    monkeypatch.setattr("jetssl_cli.scores.vertices.load_finetuned", lambda _: loaded)
    out = tmp_path / "scores.h5"
    with pytest.raises(RunError, match="not finite"):
        export(ExportConfig(run=folder / "vertex", data=folder / "test.h5", out=out))
    assert list(tmp_path.iterdir()) == []


def test_data_without_truth_are_told(folder, tmp_path, jagged):
    out = tmp_path / "scores.h5"
    with pytest.raises(DataError, match=r"test\.h5: has no truth 'vertex' about constituents"):
        export(ExportConfig(run=folder / "vertex", data=jagged / "test.h5", out=out))
