"""Scores of other tools, written as those tools write them."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import uproot

from jetssl_cli.errors import DataError
from jetssl_cli.scores import foreign
from jetssl_cli.scores.evaluate import EvaluateConfig, evaluate
from jetssl_cli.scores.foreign import read_any
from jetssl_cli.scores.identity import same_jets
from jetssl_cli.scores.scorefile import write_scores

CLASSES = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
"""In the order of weaver's configuration of JetClass, which is not that of the project."""


@pytest.fixture
def jets():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    logits = rng.normal(size=(400, 10))
    logits[np.arange(400), labels] += 2
    scores = np.exp(logits)
    scores = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores, labels, rng.normal(size=400).astype(np.float32)


def weaver(jets):
    """The branches that weaver writes."""
    scores, labels, pt = jets
    branches = {f"label_{name}": labels == c for c, name in enumerate(CLASSES)}
    branches |= {f"score_label_{name}": scores[:, c] for c, name in enumerate(CLASSES)}
    return branches | {"jet_pt": pt, "_event_": np.arange(len(labels))}


def named(jets):
    """One column with names, and scores without ``label`` in their names."""
    scores, labels, pt = jets
    columns = {f"score_{name}": scores[:, c] for c, name in enumerate(CLASSES)}
    return columns | {"label": np.array(CLASSES)[labels], "jet_pt": pt, "comment": ["a"] * 400}


def write(path, columns):
    if path.suffix == ".root":
        with uproot.recreate(path) as file:
            file.mktree("Events", {name: values.dtype for name, values in columns.items()})
            file["Events"].extend(columns)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(columns), path)
    elif path.suffix == ".gz":
        pa.csv.write_csv(pa.table(columns), path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    else:
        pa.csv.write_csv(pa.table(columns), path)
    return path


FORMS = [
    ("pred.root", weaver),
    ("pred.parquet", weaver),
    ("pred.csv", weaver),
    ("pred.parquet", named),
    ("pred.csv", named),
    ("pred.csv.gz", named),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_scores_and_labels_are_read_by_name(tmp_path, jets, name, form):
    found = read_any(write(tmp_path / name, form(jets)))
    assert found.classes == CLASSES
    np.testing.assert_allclose(found.scores, jets[0], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, jets[1])
    assert found.scores.dtype == np.float32
    assert set(found.jets) == {"jet_pt"}


def test_beside_a_file_of_ours(tmp_path, jets):
    """The same scores give the same figures, in the order of the project, on the same jets."""
    scores, labels, pt = jets
    names = {"classes": CLASSES, "jet_columns": ("jet_pt", "jet_eta")}
    with write_scores(tmp_path / "ours.h5", **names, run="ours", data="") as writer:
        writer.append(scores, scores, labels, np.stack([pt, pt], axis=1))
    theirs = write(tmp_path / "pred.root", weaver(jets))
    rows = evaluate(EvaluateConfig(scores=(tmp_path / "ours.h5", theirs), tracking=False))
    one, other = (row.model_dump(exclude={"scores", "run", "comparisons"}) for row in rows)
    assert one == other
    assert one["classes"][:3] == ("QCD", "Tbl", "Tbqq")
    assert [len(row.comparisons) for row in rows] == [0, 1]


def test_other_jets_are_not_compared(tmp_path, jets):
    scores, labels, pt = jets
    paths = [
        write(tmp_path / "a.csv", weaver(jets)),
        write(tmp_path / "b.csv", weaver((scores, labels, pt + 1))),
        write(tmp_path / "c.csv", {k: v for k, v in weaver(jets).items() if k != "jet_pt"}),
    ]
    found = [read_any(path).identity() for path in paths]
    assert same_jets(found[0], found[0])
    assert not same_jets(found[0], found[1])
    assert not same_jets(found[2], found[2])  # labels alone do not say which jets they are
    relabelled = write(tmp_path / "d.csv", weaver((scores, np.roll(labels, 1), pt)))
    assert not same_jets(found[0], read_any(relabelled).identity())
    rows = evaluate(EvaluateConfig(scores=paths, tracking=False))
    assert not any(row.comparisons for row in rows)
    with pytest.raises(DataError, match=r"a\.csv: its jets are not those of .*b\.csv"):
        evaluate(EvaluateConfig(scores=paths, compare=("a.csv", "b.csv"), tracking=False))


def test_whole_numbers_say_exactly_which_jets_they_are(tmp_path, jets):
    """In float32 these are equal."""
    events = 2**40 + np.arange(400)
    kinds = {"a": events, "b": events + 7, "c": events.astype("f8"), "d": events.astype("f4")}
    known = {
        name: read_any(
            write(tmp_path / f"{name}.parquet", named(jets) | {"jet_event": values})
        ).identity()
        for name, values in kinds.items()
    }
    assert known["a"]["jet_event"] == known["b"]["jet_event"]
    assert not same_jets(known["a"], known["b"])
    assert same_jets(known["a"], known["c"])
    assert same_jets(known["a"], known["d"])  # as far as that file can tell


def test_jets_in_double_precision_are_those_of_our_own_files(tmp_path, jets):
    one, other = (
        read_any(write(tmp_path / f"{kind}.parquet", named(jets) | {"jet_pt": pt}))
        for kind, pt in (("f4", jets[2]), ("f8", jets[2].astype("f8") * (1 + 1e-12)))
    )
    assert same_jets(one.identity(), other.identity())


def test_scores_in_half_precision_are_refused(tmp_path, jets):
    half = {name: values for name, values in named(jets).items() if name != "score_Hbb"}
    path = write(tmp_path / "a.parquet", half | {"score_Hbb": jets[0][:, 1].astype("f2")})
    with pytest.raises(DataError, match="score_Hbb: expected a float32 for each jet and class"):
        read_any(path)


def test_other_columns_of_a_csv_are_not_read(tmp_path, jets, monkeypatch):
    read, right = [], foreign._of_arrow
    monkeypatch.setattr(
        foreign, "_of_arrow", lambda table: read.extend(table.column_names) or right(table)
    )
    read_any(write(tmp_path / "a.csv", named(jets)))
    assert sorted(read) == sorted(named(jets).keys() - {"comment"})
    path = write(tmp_path / "b.csv", {"comment": ["a", "b"]})
    with pytest.raises(DataError, match="has no scores"):
        read_any(path)


def test_numbers_of_classes_with_their_names_beside_the_tree(tmp_path, jets):
    """A tree as ``jetssl export`` writes it."""
    scores, labels, _ = jets
    columns = {f"score_{name}": scores[:, c] for c, name in enumerate(CLASSES)}
    columns["label"] = labels.astype(np.int32)
    path = tmp_path / "scores.root"
    for wrong in (0, -1, 10):
        columns["label"][7] = wrong or labels[7]
        with uproot.recreate(path) as file:
            file["about"] = json.dumps({"classes": CLASSES})
            file.mktree("scores", {name: values.dtype for name, values in columns.items()})
            file["scores"].extend(columns)
        if wrong:
            with pytest.raises(DataError, match=rf"jet 7: label {wrong} is not in 0\.\.9"):
                read_any(path)
        else:
            np.testing.assert_array_equal(read_any(path).labels, labels)


def changed(columns, drop=(), **new):
    return {name: values for name, values in columns.items() if name not in drop} | new


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"score_label_Hbb": np.full(400, np.nan, "f4")}, "jet 0: a score is not finite"),
        ({"score_label_Hbb": np.full(400, 1, "f4")}, "jet 0: the scores do not sum to 1"),
        ({"score_Hbb": np.full(400, 1, "f4")}, "score_label_Hbb and score_Hbb are of the same"),
        ({"label_Hbb": np.ones(400, bool)}, "2 of the label_ columns are set, expected one"),
        ({"label_QCD": np.zeros(400, bool)}, "0 of the label_ columns are set, expected one"),
        ({"label_Hss": np.zeros(400, bool)}, "has no score_Hss; valid: QCD"),
        ({"drop": ("label_Hbb",)}, "has no label_Hbb; valid: QCD"),
        ({"drop": [f"label_{name}" for name in CLASSES]}, "has no truth; expected score_CLASS"),
        ({"drop": [f"score_label_{name}" for name in CLASSES]}, "score"),
    ],
)
@pytest.mark.parametrize("name", ["pred.root", "pred.parquet"])
def test_contradictions(tmp_path, jets, name, change, problem):
    path = write(tmp_path / name, changed(weaver(jets), **change))
    with pytest.raises(DataError, match=problem) as caught:
        read_any(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.zeros(400, int), "label has numbers, which other tools order in other ways"),
        (np.array(["QCD"] * 399 + ["Hgq"]), "jet 399: label 'Hgq'; did you mean 'Hgg'"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, jets, labels, problem):
    path = write(tmp_path / "pred.csv", named(jets) | {"label": labels})
    with pytest.raises(DataError, match=problem):
        read_any(path)


def test_a_flag_that_is_missing_is_not_one_that_is_set(tmp_path, jets):
    flags = weaver(jets)
    missing = flags["label_Hbb"].astype("f4")
    missing[7] = np.nan
    path = write(tmp_path / "pred.parquet", flags | {"label_Hbb": missing})
    with pytest.raises(DataError, match="jet 7: one of its label_ columns has no number"):
        read_any(path)


def test_names_twice_and_bytes_are_told(tmp_path):
    path = tmp_path / "pred.csv"
    path.write_text("score_A,score_B,label,jet_pt,jet_pt\n0.5,0.5,A,1,2\n")
    with pytest.raises(DataError, match="jet_pt"):
        read_any(path)
    path.write_bytes(b"score_A,score_B,label\n0.5,0.5,\xff\n")
    with pytest.raises(DataError, match="label: names of classes are expected, not bytes"):
        read_any(path)


def test_scores_that_are_no_numbers(tmp_path, jets):
    path = write(tmp_path / "pred.csv", named(jets) | {"score_Hbb": ["high"] * 400})
    with pytest.raises(DataError, match="score_Hbb: expected one number for each jet"):
        read_any(path)


@pytest.mark.parametrize("kind", ["root", "csv", "parquet"])
def test_broken_and_empty_files(tmp_path, jets, kind):
    path = tmp_path / f"pred.{kind}"
    with pytest.raises(DataError, match="no such file"):
        read_any(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable"):
        read_any(path)
    empty = {name: np.asarray(values)[:0] for name, values in weaver(jets).items()}
    with pytest.raises(DataError, match="holds no jets"):
        read_any(write(path, empty))
