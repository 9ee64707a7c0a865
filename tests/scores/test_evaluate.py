from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, roc_auc_score

from jetssl_cli.data.hdf5 import create
from jetssl_cli.errors import ConfigError, DataError
from jetssl_cli.scores.evaluate import FEWEST_REPLICAS, EvaluateConfig, evaluate
from jetssl_cli.scores.metrics import REPLICAS, WORKING_POINTS
from jetssl_cli.scores.rows import figure, figures
from jetssl_cli.scores.scorefile import FORMAT, VERSION, read_scores, write_scores
from jetssl_cli.scores.tables import to_json

JETCLASS = ("QCD", "Tbl", "Tbqq", "Wqq", "Zqq", "Hbb", "Hcc", "Hgg", "H4q", "Hqql")
ESTIMATE = {"value", "low", "high"}
ROW = {
    "scores", "run", "num_jets", "accuracy", "auc", "calibration", "rejection", "classes",
    "confusion", "seeds", "best", "comparisons",
}  # fmt: skip


def sample(num_jets, num_classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_jets)
    logits = rng.normal(size=(num_jets, num_classes))
    logits[np.arange(num_jets), labels] += 1.5
    scores = np.exp(logits)
    scores = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores, logits.astype(np.float32), labels, rng.normal(size=(num_jets, 2))


def write(path, jets, *, classes=JETCLASS, run="runs/a", chunk=700):
    names = {"classes": classes, "jet_columns": ("jet_pt", "jet_eta")}
    with write_scores(path, **names, run=run, data="test.h5") as writer:
        for start in range(0, len(jets[0]), chunk):
            writer.append(*(array[start : start + chunk] for array in jets))
    return path


@pytest.fixture
def jets():
    return sample(3000, 10, seed=1)


class TestEvaluate:
    def test_no_value_depends_on_the_number_of_replicas(self, tmp_path, jets):
        path = write(tmp_path / "a.h5", jets)
        few, many = (
            evaluate(EvaluateConfig(tracking=False, scores=[path], replicas=number))[0]
            for number in (FEWEST_REPLICAS, REPLICAS)
        )
        for name in figures([few]):
            assert figure(few, name).value == figure(many, name).value
            assert getattr(figure(few, name), "bound", None) == getattr(
                figure(many, name), "bound", None
            )

    def test_figures_equal_sklearn(self, tmp_path, jets):
        scores, _, labels, _ = jets
        (row,) = evaluate(EvaluateConfig(tracking=False, scores=[write(tmp_path / "a.h5", jets)]))
        assert row.num_jets == 3000
        assert row.accuracy.value == accuracy_score(labels, scores.argmax(axis=1))
        expected = roc_auc_score(labels, scores, multi_class="ovo", average="macro")
        assert row.auc.value == pytest.approx(expected, abs=1e-9)
        assert row.accuracy.low < row.accuracy.value < row.accuracy.high
        assert list(row.rejection) == list(WORKING_POINTS)
        for signal, asked in WORKING_POINTS.items():
            assert asked <= row.rejection[signal].efficiency < asked + 0.005

    def test_order_of_classes_is_irrelevant(self, tmp_path, jets):
        scores, logits, labels, features = jets
        order = np.random.default_rng(0).permutation(10)
        shuffled = scores[:, order], logits[:, order], np.argsort(order)[labels], features
        names = tuple(JETCLASS[c] for c in order)
        paths = [
            write(tmp_path / "a.h5", jets),
            write(tmp_path / "b.h5", shuffled, classes=names),
        ]
        one, other = evaluate(EvaluateConfig(tracking=False, scores=paths))
        assert one.classes == other.classes == JETCLASS
        left = {"scores", "comparisons"}
        assert one.model_dump(exclude=left) == other.model_dump(exclude=left)
        (comparison,) = other.comparisons
        assert comparison.accuracy.p == comparison.auc.p == 1
        assert one.best == other.best == ()

    def test_the_highest_accuracy_comes_first_and_ties_stay_in_the_order_given(self, tmp_path):
        runs = {"c": 1, "b": 2, "a": 1}
        paths = [
            write(tmp_path / f"{name}.h5", sample(1000, 10, seed=seed), run=name)
            for name, seed in runs.items()
        ]
        rows = evaluate(EvaluateConfig(tracking=False, scores=paths))
        assert [row.accuracy.value for row in rows] == sorted(
            (row.accuracy.value for row in rows), reverse=True
        )
        assert [row.run for row in rows if row.run != "b"] == ["c", "a"]

    def test_json_schema(self, tmp_path, jets):
        path = write(tmp_path / "a.h5", jets)
        (row,) = json.loads(to_json(evaluate(EvaluateConfig(tracking=False, scores=[path]))))
        assert set(row) == ROW
        assert (row["scores"], row["run"], row["num_jets"]) == (str(path), "runs/a", 3000)
        assert set(row["accuracy"]) == set(row["auc"]) == ESTIMATE
        for cut in row["rejection"].values():
            assert set(cut) == ESTIMATE | {"efficiency", "bound"}

    def test_a_class_without_jets_is_undefined_and_an_unknown_one_left_out(self, tmp_path):
        scores, logits, labels, features = sample(300, 3, seed=2)
        jets = scores, logits, np.where(labels == 2, 0, labels), features
        path = write(tmp_path / "a.h5", jets, classes=("QCD", "Hbb", "Hcc"))
        (row,) = evaluate(EvaluateConfig(tracking=False, scores=[path]))
        assert list(row.rejection) == ["Hbb", "Hcc"]
        assert row.rejection["Hbb"] is not None
        assert row.rejection["Hcc"] is None

    def test_flavours_have_no_rejection(self, tmp_path):
        flavours = ("light", "charm", "bottom")
        path = write(tmp_path / "a.h5", sample(300, 3, seed=2), classes=flavours)
        (row,) = evaluate(EvaluateConfig(tracking=False, scores=[path]))
        assert row.rejection == {}

    def test_signals_without_qcd_have_no_rejection(self, tmp_path):
        path = write(tmp_path / "a.h5", sample(300, 2, seed=2), classes=("Hbb", "Hcc"))
        (row,) = evaluate(EvaluateConfig(tracking=False, scores=[path]))
        assert row.rejection == {}

    def test_runs_to_compare_are_found_by_the_names_of_their_files(self, tmp_path, jets):
        paths = [write(tmp_path / f"{n}.h5", jets, run=f"runs/{n * 2}") for n in ("a", "b")]
        for one, other in (("a", "b"), ("a.h5", "b.h5"), ("aa", "b.h5")):
            cfg = EvaluateConfig(tracking=False, scores=paths, compare=(one, other), replicas=100)
            (found,) = (row for row in evaluate(cfg) if row.comparisons)
            assert found.comparisons[0].to == str(paths[1])

    def test_a_folder_stands_for_its_score_files(self, tmp_path, jets):
        folder = tmp_path / "scores"
        paths = [write(folder / f"{n}.h5", jets, run=f"runs/{n}") for n in ("b", "a")]
        (folder / "notes.txt").touch()
        rows = evaluate(EvaluateConfig(tracking=False, scores=[folder], replicas=100))
        assert sorted(row.scores for row in rows) == sorted(map(str, paths))
        with pytest.raises(DataError, match="named twice"):
            evaluate(EvaluateConfig(tracking=False, scores=[folder, paths[0]], replicas=100))

    def test_rows_on_other_jets_are_told(self, tmp_path, jets, capsys):
        other = sample(3000, 10, seed=2)
        paths = [write(tmp_path / f"{n}.h5", j) for n, j in (("a", jets), ("b", other))]
        rows = evaluate(EvaluateConfig(tracking=False, scores=paths, replicas=100))
        told = f"note: {rows[1].scores}: of other jets than {rows[0].scores}, as far as the files"
        assert told in capsys.readouterr().err
        evaluate(EvaluateConfig(tracking=False, scores=paths[:1], replicas=100))
        assert not capsys.readouterr().err

    def test_runs_to_compare_are_found_however_their_paths_are_written(self, tmp_path, jets):
        paths = [write(tmp_path / f"{name}.h5", jets, run=f"runs/{name}") for name in "ab"]
        for one, other in (("runs/b/", "a"), (f"{tmp_path}/./b.h5", "./runs/a")):
            cfg = EvaluateConfig(tracking=False, scores=paths, compare=(one, other), replicas=100)
            (made,) = [found for row in evaluate(cfg) for found in row.comparisons]
            assert (made.scores, made.to) == tuple(map(str, reversed(paths)))

    def test_outputs_are_not_written_over_other_files(self, tmp_path, jets):
        path = write(tmp_path / "a.h5", jets)
        before = path.read_bytes()
        (tmp_path / "page.html").mkdir()
        for asked, told in (
            ({"report": path}, r"--report .*a\.h5: a page, such as report\.html, is needed"),
            ({"report": tmp_path / "page.html"}, "is a folder; a file is needed"),
            ({"out": path}, r"--out .*a\.h5: is a file; a folder is needed"),
            ({"plots": path}, r"--plots .*a\.h5: is a file; a folder is needed"),
        ):
            with pytest.raises(ConfigError, match=told):
                evaluate(EvaluateConfig(tracking=False, scores=[path], replicas=100, **asked))
        assert path.read_bytes() == before

    def test_scores_of_classes_are_evaluated_without_torch(self, tmp_path, jets):
        """Which takes seconds to import."""
        path = write(tmp_path / "a.h5", jets)
        words = ["evaluate", str(path), "--no-tracking", "--out", str(tmp_path / "tables")]
        code = (
            "import sys; from jetssl_cli.cli.app import app\n"
            f"try: app({words})\n"
            "except SystemExit as end: assert not end.code\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert (tmp_path / "tables" / "table.md").exists()

    def test_one_file_named_twice(self, tmp_path, jets):
        path = write(tmp_path / "a.h5", jets)
        detour = tmp_path / "x" / ".." / "a.h5"
        (tmp_path / "x").mkdir()
        with pytest.raises(DataError, match="named twice"):
            evaluate(EvaluateConfig(tracking=False, scores=[path, detour]))

    def test_other_classes(self, tmp_path):
        jets = sample(100, 3, seed=2)
        one = write(tmp_path / "a.h5", jets, classes=("QCD", "Hbb", "Hcc"))
        other = write(tmp_path / "b.h5", jets, classes=("QCD", "Hbb", "Zqq"))
        with pytest.raises(DataError, match=r"b\.h5: .*a\.h5: lacks Hcc; adds Zqq"):
            evaluate(EvaluateConfig(tracking=False, scores=[one, other]))

    def test_no_file(self):
        with pytest.raises(ValidationError):
            EvaluateConfig(scores=[])


class TestOut:
    def test_tables_are_written(self, tmp_path, jets):
        out = tmp_path / "deep" / "out"
        path = write(tmp_path / "a.h5", jets)
        rows = evaluate(EvaluateConfig(tracking=False, scores=[path], out=out))
        names = ["table.csv", "table.json", "table.md", "table.tex"]
        assert sorted(file.name for file in out.iterdir()) == names
        assert (out / "table.json").read_text(encoding="utf-8") == to_json(rows)
        assert (out / "table.md").read_text(encoding="utf-8").startswith("| run")
        assert (out / "table.csv").read_text(encoding="utf-8").startswith("scores,run,num_jets,")
        assert r"\toprule" in (out / "table.tex").read_text(encoding="utf-8")

    def test_a_file_in_the_way(self, tmp_path, jets):
        path = write(tmp_path / "a.h5", jets)
        out = tmp_path / "b.h5" / "tables"
        out.parent.touch()
        with pytest.raises(DataError, match="tables: cannot be written: Not a directory"):
            evaluate(EvaluateConfig(tracking=False, scores=[path], out=out))

    def test_nothing_half_written_stays(self, tmp_path, jets):
        out = tmp_path / "out"
        (out / "table.md").mkdir(parents=True)
        path = write(tmp_path / "a.h5", jets)
        with pytest.raises(DataError, match="cannot be written"):
            evaluate(EvaluateConfig(tracking=False, scores=[path], out=out))
        assert [file.name for file in out.iterdir()] == ["table.md"]


def write_raw(path, arrays, **attributes):
    """A score file that need not obey the rules."""
    described = {"classes": '["QCD", "Hbb"]', "jet_columns": "[]", "run": "", "data": ""}
    with create(path, FORMAT, VERSION) as table:
        table.describe(described | attributes)
        for name, array in arrays.items():
            table.append(name, array)
    return path


def valid(num_jets=4):
    return {
        "scores": np.full((num_jets, 2), 0.5, np.float32),
        "logits": np.zeros((num_jets, 2), np.float32),
        "labels": np.arange(num_jets) % 2,
        "jets": np.zeros((num_jets, 1), np.float32),
    }


class TestScoreFile:
    def test_what_is_written_is_read(self, tmp_path, jets):
        found = read_scores(write(tmp_path / "a.h5", jets))
        np.testing.assert_array_equal(found.scores, jets[0])
        np.testing.assert_array_equal(found.labels, jets[2])
        assert found.scores.dtype == np.float32
        assert found.labels.dtype == np.int64
        assert (found.classes, found.run, found.data) == (JETCLASS, "runs/a", "test.h5")

    def test_empty_chunks_are_harmless(self, tmp_path, jets):
        path = tmp_path / "a.h5"
        names = {"classes": JETCLASS, "jet_columns": ("jet_pt", "jet_eta")}
        with write_scores(path, **names, run="", data="") as writer:
            writer.append(*(array[:0] for array in jets))
            writer.append(*jets)
            writer.append(*(array[:0] for array in jets))
        assert len(read_scores(path).labels) == 3000

    def test_a_failed_export_leaves_no_file(self, tmp_path):
        def fail():
            names = {"classes": ("QCD",), "jet_columns": ("jet_pt",)}
            with write_scores(tmp_path / "a.h5", **names, run="", data=""):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert list(tmp_path.iterdir()) == []

    def test_no_jets(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.h5: holds no jets"):
            read_scores(write(tmp_path / "a.h5", sample(0, 10, seed=0)))

    def test_valid(self, tmp_path):
        assert read_scores(write_raw(tmp_path / "a.h5", valid())).classes == ("QCD", "Hbb")

    def test_what_a_file_says_commands_no_terminal(self, tmp_path):
        classes = '["QCD\\u001b[2J", "Hbb"]'
        found = read_scores(
            write_raw(tmp_path / "a.h5", valid(), classes=classes, run="r\x1b[2J\n")
        )
        assert (found.run, found.classes[0]) == (r"r\x1b[2J\n", r"QCD\x1b[2J")

    @pytest.mark.parametrize(
        ("classes", "problem"),
        [
            ("[]", "has no class names"),
            ("QCD", "expected a JSON list of names"),
            ('{"QCD": 0}', "expected a JSON list of names"),
            ("[0, 1]", "expected a JSON list of names"),
            ('["QCD", "QCD"]', "the class 'QCD' is named twice"),
            ('["QCD", "Hbb", "Hcc"]', "2 scores a jet for 3 classes: QCD, Hbb, Hcc"),
        ],
    )
    def test_class_names(self, tmp_path, classes, problem):
        path = write_raw(tmp_path / "a.h5", valid(), classes=classes)
        with pytest.raises(DataError, match=problem) as caught:
            read_scores(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "array", "problem"),
        [
            ("labels", np.zeros(3, int), "different numbers of jets: scores 4, logits 4, labels 3"),
            ("logits", np.zeros((3, 2)), "different numbers of jets"),
            ("jets", np.zeros((5, 2)), "different numbers of jets"),
            ("labels", np.array([0, 1, 2, 0]), "jet 2: label 2 is not in 0..1"),
            ("labels", np.array([0, -1, 1, 0]), "jet 1: label -1 is not in 0..1"),
            ("labels", np.zeros(4), "expected one integer"),
            ("scores", np.full((4, 2), 0.5, np.float16), "expected a float32"),
            ("scores", np.full(4, 0.5), "expected a float32"),
            ("scores", np.tile([0.5, np.nan], (4, 1)), "jet 0: a score is not finite .4 such"),
            ("scores", np.tile([-np.inf, np.inf], (4, 1)), "a score is not finite"),
            ("scores", np.tile([-0.5, 1.5], (4, 1)), "a score is negative"),
            ("scores", np.array([[0.5, 0.5]] * 3 + [[0.5, 0.502]]), "jet 3: the scores do not sum"),
        ],
    )
    def test_contradictions(self, tmp_path, name, array, problem):
        path = write_raw(tmp_path / "a.h5", valid() | {name: array})
        with pytest.raises(DataError, match=problem) as caught:
            read_scores(path)
        assert str(caught.value).startswith(f"{path}: ")

    def test_rounding_of_float32_is_accepted(self, tmp_path):
        scores = np.tile(np.array([0.5, 0.5009], np.float32), (4, 1))
        read_scores(write_raw(tmp_path / "a.h5", valid() | {"scores": scores}))

    @pytest.mark.parametrize("missing", ["scores", "logits", "labels", "jets"])
    def test_missing_arrays(self, tmp_path, missing):
        arrays = {name: array for name, array in valid().items() if name != missing}
        with pytest.raises(DataError, match=rf"a\.h5: damaged: .*{missing}"):
            read_scores(write_raw(tmp_path / "a.h5", arrays))

    def test_not_a_score_file(self, tmp_path):
        (tmp_path / "text.h5").write_text("no", encoding="utf-8")
        with create(tmp_path / "other.h5", "jetssl-jagged", 1):
            pass
        for name, problem in (("text", "HDF5"), ("other", "jetssl-jagged"), ("no", "no such file")):
            with pytest.raises(DataError, match=problem):
                read_scores(tmp_path / f"{name}.h5")
