"""Which row is best, and rows over several seeds."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from jetssl_cli.data.hdf5 import create
from jetssl_cli.errors import ConfigError, DataError
from jetssl_cli.scores.cells import columns
from jetssl_cli.scores.compare import Difference
from jetssl_cli.scores.evaluate import EvaluateConfig, evaluate
from jetssl_cli.scores.groups import average, common_name
from jetssl_cli.scores.metrics import Calibration, Estimate, Rejection
from jetssl_cli.scores.rows import Row, mark_best, ordered
from jetssl_cli.scores.scorefile import FORMAT, VERSION
from jetssl_cli.scores.tables import render

CLASSES = ("QCD", "Hbb", "Hcc")


def row(name, accuracy, *, error=0.01, ece=0.02, hbb=None):
    around = Estimate(accuracy, accuracy - error, accuracy + error)
    return Row(
        scores=f"{name}.h5",
        run=name,
        num_jets=100,
        accuracy=around,
        auc=around,
        calibration=Calibration(Estimate(ece, ece - 0.001, ece + 0.001), (2,), (0.5,), (0.5,)),
        rejection={"Hbb": hbb} if hbb else {},
        classes=("QCD", "Hbb"),
        confusion=((1, 0), (0, 1)),
    )


def unpaired(*_):
    return None


def best(rows, paired=unpaired):
    return [row.best for row in mark_best(rows, paired)]


class TestBest:
    def test_more_than_the_uncertainty_of_the_difference(self):
        assert best([row("a", 0.5), row("b", 0.52)]) == [(), ("accuracy", "auc")]
        assert best([row("a", 0.5), row("b", 0.51)]) == [(), ()]  # sqrt(2) * 0.01 is more

    def test_the_smallest_calibration_error(self):
        assert best([row("a", 0.5, ece=0.02), row("b", 0.5, ece=0.03)]) == [("ece",), ()]

    def test_every_other_row_has_to_be_beaten(self):
        rows = [row("a", 0.50), row("b", 0.55), row("c", 0.551)]
        assert best(rows) == [(), (), ()]

    def test_a_paired_difference_decides(self):
        small = Difference(0.001, 0.0005, 0.0015, 0.1)
        rows = [row("a", 0.5, ece=0.1), row("b", 0.501, ece=0.1)]
        assert best(rows, lambda name, *_: None if name == "ece" else small)[1] == (
            "accuracy",
            "auc",
        )

    def test_ratios_of_rejections(self):
        cuts = [Rejection(x, x / 2, 2 * x, 0.5, bound=False) for x in (100.0, 110.0)]
        rows = [row("a", 0.5, hbb=cuts[0]), row("b", 0.5, hbb=cuts[1])]
        assert best(rows) == [(), ()]
        ratio = {"Hbb": Difference(1.1, 1.05, 1.15, 0.1)}
        assert best(rows, lambda name, *_: ratio.get(name)) == [(), ("Hbb",)]
        ratio = {"Hbb": Difference(1.1, 0.95, 1.25, 0.1)}
        assert best(rows, lambda name, *_: ratio.get(name)) == [(), ()]

    def test_nothing_is_known_to_beat_a_bound(self):
        number = Rejection(400.0, 350.0, 450.0, 0.5, bound=False)
        bound = Rejection(333.3, 333.3, None, 0.5, bound=True)
        assert best([row("a", 0.5, hbb=number), row("b", 0.5, hbb=bound)]) == [(), ()]

    def test_one_row_is_not_best(self):
        assert best([row("a", 0.5)]) == [()]

    def test_bold_in_every_format(self):
        rows = mark_best(ordered([row("a", 0.5), row("b", 0.6)]), unpaired)
        assert [found.run for found in rows] == ["b", "a"]
        assert "**0.600 ± 0.010**" in render(rows, format="markdown")
        assert r"\textbf{0.600 $\pm$ 0.010}" in render(rows, format="latex")
        assert json.loads(render(rows, format="json"))[0]["best"] == ["accuracy", "auc"]


class TestSeeds:
    def test_mean_and_standard_deviation(self):
        cuts = [Rejection(x, x - 1, x + 1, 0.5, bound=False) for x in (10.0, 14.0)]
        found = average([row("a1", 0.50, hbb=cuts[0]), row("a2", 0.54, hbb=cuts[1])], "a")
        assert found.accuracy.value == pytest.approx(0.52)
        assert found.accuracy.high == pytest.approx(0.52 + 8**0.5 / 100)
        assert found.rejection["Hbb"].value == 12
        assert found.rejection["Hbb"].high == pytest.approx(12 + 8**0.5)
        assert found.confusion == ((2, 0), (0, 2))
        assert found.seeds == ("a1.h5", "a2.h5")
        assert columns([found])[0] == ["run", "a (2 seeds)"]
        assert "standard deviation over the seeds" in render([found], format="markdown")

    def test_near_0_and_1_it_is_the_whole_standard_deviation(self):
        found = average([row("a", 0.999, ece=0.0001), row("b", 0.9, ece=0.01)], "a")
        assert found.accuracy.high == pytest.approx(0.9495 + 0.099 / 2**0.5)
        assert found.calibration.error.low == pytest.approx(0.00505 - 0.0099 / 2**0.5)
        shown = ["0.950 ± 0.070", "0.950 ± 0.070", "0.0050 ± 0.0070"]
        assert [column[1] for column in columns([found])[2:]] == shown

    def test_bounds_have_the_smallest_and_no_mean_with_numbers(self):
        number = Rejection(100.0, 90.0, 110.0, 0.5, bound=False)
        bounds = [Rejection(x, x, None, 0.5, bound=True) for x in (30.0, 20.0)]
        found = average([row(str(cut), 0.5, hbb=cut) for cut in bounds], "a")
        assert found.rejection["Hbb"] == Rejection(20.0, 20.0, None, 0.5, bound=True)
        assert "the smallest of the seeds" in render([found], format="markdown")
        found = average([row(str(cut), 0.5, hbb=cut) for cut in (number, *bounds)], "a")
        assert found.rejection["Hbb"] is None
        assert columns([found])[-1] == ["Hbb 50%", "–"]
        assert "some of them, but not all, as a bound" in render([found], format="markdown")
        found = average([row(str(cut), 0.5, hbb=cut) for cut in (number, number)], "a")
        assert "bound" not in render([found], format="markdown")

    @pytest.mark.parametrize(
        ("names", "name"),
        [
            (("frozen-1", "frozen-2"), "frozen"),
            (("frozen_seed0", "frozen_seed10"), "frozen"),
            (("a", "b"), "a"),
            (("frozen-10", "frozen-11"), "frozen"),
            (("frozen-1", "frozen-10"), "frozen"),
            (("full-labels-0", "full-labels-1"), "full-labels"),
            (("w128-s0", "w128-s1"), "w128"),
            (("seed0", "seed1"), "seed0"),
            (("runs/x.s1", "runs/x.s2"), "runs/x"),
        ],
    )
    def test_names(self, names, name):
        assert common_name(names) == name


def tell(path, **attributes):
    """Add what an export knows of the run."""
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    return path


def write(path, *, seed, strength=1.0):
    """A score file of a run with this seed, on jets that are the same for all."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed)
    labels = truth.integers(0, 3, 300)
    scores = np.exp(noise.normal(size=(300, 3)) + strength * np.eye(3)[labels])
    described = {"classes": json.dumps(CLASSES), "jet_columns": '["jet_pt"]', "data": ""}
    with create(path, FORMAT, VERSION) as table:
        table.describe({"run": f"runs/{path.stem}", **described})
        table.append("scores", (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32))
        table.append("logits", np.zeros((300, 3), np.float32))
        table.append("labels", labels)
        table.append("jets", truth.normal(size=(300, 1)).astype(np.float32))
    return path


class TestGroups:
    def run(self, paths, **settings):
        return evaluate(EvaluateConfig(scores=paths, tracking=False, replicas=100, **settings))

    def test_files_that_say_so_are_averaged(self, tmp_path):
        paths = []
        for seed in (1, 2, 3):
            path = write(tmp_path / f"full-{seed}.h5", seed=seed, strength=3)
            paths.append(tell(path, seed=seed, group="f00"))
        paths.append(tell(write(tmp_path / "other.h5", seed=4), seed=1, group="bar"))
        rows = self.run(paths)
        assert [row.run for row in rows] == ["full", "runs/other"]
        assert [len(row.seeds) for row in rows] == [3, 0]
        assert rows[0].best

    def test_equal_seeds_or_other_jets_are_not(self, tmp_path):
        one = tell(write(tmp_path / "a.h5", seed=1), seed=1, group="f00")
        two = tell(write(tmp_path / "b.h5", seed=2), seed=1, group="f00")
        assert all(not row.seeds for row in self.run([one, two]))
        three = tell(write(tmp_path / "c.h5", seed=3), seed=2, group="f00", data_hash="x")
        four = tell(write(tmp_path / "d.h5", seed=4), seed=3, group="f00", data_hash="y")
        assert all(not row.seeds for row in self.run([three, four]))

    def test_groups_of_one_name_stay_apart(self, tmp_path):
        paths = []
        for group in ("f00", "bar"):
            (tmp_path / group).mkdir()
            for seed in (1, 2):
                path = write(tmp_path / group / f"x-{seed}.h5", seed=len(paths))
                paths.append(tell(path, seed=seed, group=group))
        rows = self.run(paths)
        assert [len(row.seeds) for row in rows] == [2, 2]
        assert {score for row in rows for score in row.seeds} == set(map(str, paths))
        assert len(set(columns(rows)[0])) == 3

    def test_by_a_pattern(self, tmp_path):
        paths = [write(tmp_path / f"{name}.h5", seed=s) for s, name in enumerate(("a1", "a2", "b"))]
        rows = self.run(paths, groups=("mine=a?",))
        assert {row.run: len(row.seeds) for row in rows} == {"mine": 2, "runs/b": 0}

    @pytest.mark.parametrize(
        ("groups", "problem"),
        [
            (("a?",), "expected NAME=PATTERN"),
            (("a=c*",), "no run is named so; valid: a1, a2, b"),
            (("a=a*", "b=*2"), "a2 is in another group already"),
            (("a=a*", "a=b"), "the name 'a' is given twice"),
        ],
    )
    def test_patterns_that_mean_nothing(self, tmp_path, groups, problem):
        paths = [write(tmp_path / f"{name}.h5", seed=s) for s, name in enumerate(("a1", "a2", "b"))]
        with pytest.raises(ConfigError, match=problem):
            self.run(paths, groups=groups)

    def test_a_pattern_of_one_run_alone_is_told(self, tmp_path, capsys):
        paths = [write(tmp_path / f"{name}.h5", seed=s) for s, name in enumerate(("a1", "b"))]
        assert [row.seeds for row in self.run(paths, groups=("best=a*",))] == [(), ()]
        told = " ".join(capsys.readouterr().err.split())
        assert "note: group 'best=a*': matches a1 alone; nothing is averaged" in told

    def test_only_the_same_jets_are_averaged(self, tmp_path):
        one = tell(write(tmp_path / "a1.h5", seed=1), data_hash="x")
        two = tell(write(tmp_path / "a2.h5", seed=2), data_hash="y")
        problem = rf"{two}: its jets are not those of {one}; only runs on the same jets can be aver"
        with pytest.raises(DataError, match=problem):
            self.run([one, two], groups=("a=a*",))

    def test_files_that_tell_nothing_of_their_jets_need_equal_labels(self, tmp_path):
        lines = ["score_QCD,score_Hbb,label", "0.5,0.5,QCD", "0.2,0.8,Hbb", "0.9,0.1,QCD"]
        paths = [tmp_path / f"{name}.csv" for name in "abc"]
        for path, rows in zip(paths, (lines, lines, lines[:3]), strict=True):
            path.write_text("\n".join(rows))
        assert len(self.run(paths, groups=("two=[ab].csv",))) == 2
        with pytest.raises(DataError, match="only runs on the same jets can be averaged"):
            self.run(paths, groups=("all=*",))

    def test_two_of_a_group_can_be_compared(self, tmp_path):
        paths = [write(tmp_path / f"{name}.h5", seed=s) for s, name in enumerate(("a1", "a2", "b"))]
        rows = self.run(paths, groups=("a=a?",), compare=("a2", "b"))
        found = [comparison for row in rows for comparison in row.comparisons]
        assert [(x.scores, x.to) for x in found] == [(str(paths[1]), str(paths[2]))]
        assert "a2.h5" in render(rows, format="markdown")
        with pytest.raises(ConfigError, match=r"no run 'c'; valid: a1, a2, b"):
            self.run(paths, compare=("c", "b"))
