from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import h5py
import numpy as np
import pytest
import uproot

from jetssl_cli.config import Layer, load
from jetssl_cli.data import extract
from jetssl_cli.data.convert import ConvertConfig, ConvertReport, convert, plan
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import Recipe, load_recipe
from jetssl_cli.errors import DataError

JETCLASS = load_recipe("jetclass")
NO_CLASS = "constituents of no particle class"
BEYOND = "constituents beyond 128"
DROPPED = "jets of a label to drop"
CLASSES = ("QCD", "Tbl", "Tbqq", "Wqq", "Zqq", "Hbb", "Hcc", "Hgg", "H4q", "Hqql")
PROCESSES = {
    "ZJetsToNuNu": "QCD",
    "TTBarLep": "Tbl",
    "TTBar": "Tbqq",
    "WToQQ": "Wqq",
    "ZToQQ": "Zqq",
    "HToBB": "Hbb",
    "HToCC": "Hcc",
    "HToGG": "Hgg",
    "HToWW4Q": "H4q",
    "HToWW2Q1L": "Hqql",
}
PART = ("px", "py", "pz", "d0val", "d0err", "dzval", "dzerr", "charge")
FLAGS = ("isPhoton", "isChargedHadron", "isNeutralHadron", "isElectron", "isMuon")
KINDS = (  # particle class -> flag, charge
    ("isPhoton", 0),
    ("isChargedHadron", -1),
    ("isNeutralHadron", 0),
    ("isChargedHadron", 1),
    ("isElectron", -1),
    ("isElectron", 1),
    ("isMuon", -1),
    ("isMuon", 1),
)
LABEL_TYPES = (
    "float32",
    "int32",
    "int32",
    "int32",
    "int32",
    "bool",
    "bool",
    "bool",
    "bool",
    "bool",
)
FEATURES = ["pt", "deta", "dphi", "d0", "d0_err", "dz", "dz_err"]

Tree = dict[str, Any]
"""Branches: one list per jet for constituents, one number per jet for the rest."""


def made_up(sizes: list[int], seed: int = 0) -> Tree:
    """Jets of these sizes in the JetClass schema, their constituents in no order."""
    rng = np.random.default_rng(seed)
    jets, total = len(sizes), sum(sizes)
    sign = np.where(np.arange(jets) % 2, -1.0, 1.0)
    tree: Tree = {
        "jet_pt": rng.uniform(500, 1000, jets),
        "jet_eta": sign * rng.uniform(0.3, 2, jets),
        "jet_phi": rng.uniform(-np.pi, np.pi, jets),
        "jet_sdmass": rng.uniform(0, 200, jets),
        "jet_nparticles": np.array(sizes, float),
    }
    kind = rng.integers(0, 8, total)
    neutral = np.isin(kind, (0, 2))
    pt = rng.exponential(10, total) + 0.1
    eta = np.repeat(tree["jet_eta"], sizes) + rng.normal(0, 0.4, total)
    phi = np.repeat(tree["jet_phi"], sizes) + rng.normal(0, 0.4, total)
    flat = {
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pt * np.sinh(eta),
        "d0val": np.where(neutral, 0, rng.normal(0, 1, total)),
        "d0err": np.where(neutral, 0, rng.uniform(0.01, 1, total)),
        "dzval": np.where(neutral, 0, rng.normal(0, 1, total)),
        "dzerr": np.where(neutral, 0, rng.uniform(0.01, 1, total)),
        "charge": np.array([KINDS[k][1] for k in kind], float),
    }
    flat |= {flag: np.array([KINDS[k][0] == flag for k in kind], np.int32) for flag in FLAGS}
    for name, values in flat.items():
        tree[f"part_{name}"] = np.split(values, np.cumsum(sizes)[:-1]) if jets else []
    label = rng.integers(0, 10, jets)
    tree |= {f"label_{name}": (label == i).astype(int) for i, name in enumerate(CLASSES)}
    return tree


def branch_type(name: str, tree_type: dict[str, str]) -> str:
    if name in tree_type:
        return tree_type[name]
    if name.startswith("label_"):
        return LABEL_TYPES[CLASSES.index(name.removeprefix("label_"))]
    if name.startswith("part_is"):
        return "var * int32"
    return "var * float32" if name.startswith("part_") else "float32"


def save(path: Path, tree: Tree, name: str = "tree", **types: str) -> Path:
    """Write a ROOT file that holds a TTree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {branch: branch_type(branch, types) for branch in tree}
    with uproot.recreate(path) as file:
        out = file.mktree(name, kinds)
        columns = {}
        for branch, values in tree.items():
            dtype = kinds[branch].removeprefix("var * ")
            if dtype == "string":
                columns[branch] = ak.Array(values)
            elif kinds[branch].startswith("var"):
                sizes = np.array([len(v) for v in values], np.int64)
                flat = np.concatenate([np.zeros(0), *values]).astype(dtype)
                columns[branch] = ak.unflatten(flat, sizes)
            else:
                columns[branch] = np.asarray(values).astype(dtype)
        if len(columns["jet_pt"]):
            out.extend(columns)
    return path


def flat_tree(path: Path, names: list[str]) -> Tree:
    """Branches as lists of numpy arrays."""
    with uproot.open(path) as file:
        arrays = file["tree"].arrays(names, how=dict)
    tree: Tree = {}
    for name, values in arrays.items():
        if values.ndim == 1:
            tree[name] = ak.to_numpy(values)
        else:
            ends = np.cumsum(ak.to_numpy(ak.num(values)))
            tree[name] = np.split(ak.to_numpy(ak.flatten(values)), ends[:-1])
    return tree


def by_hand(tree: Tree, jet: int) -> tuple[np.ndarray, np.ndarray]:
    """Constituents of one jet from the definitions, in float64; with them the dropped ones."""
    p = {
        name: np.asarray(tree[f"part_{name}"][jet]).astype(np.float32).astype(np.float64)
        for name in (*PART, *FLAGS)
    }
    jet_eta, jet_phi = (float(np.float32(tree[name][jet])) for name in ("jet_eta", "jet_phi"))
    momentum = np.stack([p["px"], p["py"], p["pz"]], axis=1)
    pt = np.sqrt(p["px"] ** 2 + p["py"] ** 2)
    length = np.sqrt((momentum**2).sum(axis=1))
    eta = 0.5 * np.log((length + p["pz"]) / (length - p["pz"]))
    turned = (p["px"] + 1j * p["py"]) * np.exp(-1j * jet_phi)
    phi = np.arctan2(p["py"], p["px"])
    b = np.stack(
        [p["d0val"] * np.cos(phi - np.pi / 2), p["d0val"] * np.sin(phi - np.pi / 2), p["dzval"]],
        axis=1,
    )
    axis = np.array([np.cos(jet_phi), np.sin(jet_phi), np.sinh(jet_eta)])
    d0_sign = (np.cross(axis, momentum) * np.cross(momentum, -b)).sum(axis=1)
    dz_sign = p["dzval"] * (jet_eta - eta)
    kind = np.full(len(pt), 255)
    for index, (flag, charge) in enumerate(KINDS):
        one_flag = sum(p[f] for f in FLAGS) == 1
        kind[(p[flag] == 1) & one_flag & (np.sign(p["charge"]) == charge)] = index
    charged = (kind != 0) & (kind != 2)
    features = np.stack(
        [
            pt,
            np.clip(eta - jet_eta, -0.8, 0.8),
            np.clip(np.angle(turned), -0.8, 0.8),
            np.where(charged, np.abs(p["d0val"]) * np.where(d0_sign < 0, -1, 1), 0),
            np.where(charged, p["d0err"], 0),
            np.where(charged, np.abs(p["dzval"]) * np.where(dz_sign < 0, -1, 1), 0),
            np.where(charged, p["dzerr"], 0),
        ],
        axis=1,
    )
    order = sorted(range(len(pt)), key=lambda i: -pt[i])
    return features[order], kind[order]


def agrees(jets: JetArrays, tree: Tree, most: int = 128) -> None:
    """The converted jets are those that the definitions give, to the precision of float32."""
    expected = [by_hand(tree, jet) for jet in range(len(tree["jet_pt"]))]
    kept = [(f[k != 255][:most], k[k != 255][:most]) for f, k in expected]
    assert jets.sizes.tolist() == [len(k) for _, k in kept]
    np.testing.assert_array_equal(jets.ids, np.concatenate([k for _, k in kept]))
    wanted = np.concatenate([f for f, _ in kept])
    for column, name in enumerate(FEATURES):
        np.testing.assert_allclose(
            jets.features[:, column], wanted[:, column], rtol=2e-7, atol=2e-7, err_msg=name
        )
    names = ("jet_pt", "jet_eta", "jet_phi", "jet_sdmass", "jet_nparticles")
    of_jets = np.stack([np.asarray(tree[n]).astype(np.float32) for n in names], axis=1)
    np.testing.assert_array_equal(jets.jets, of_jets)
    assert jets.features.dtype == jets.jets.dtype == np.float32


def run(*sources: Path, out: Path, recipe: Recipe = JETCLASS, **more: Any) -> ConvertReport:
    return convert(ConvertConfig(sources=sources, recipe=recipe, out=out, **more))


def read(path: Path) -> JetArrays:
    with JaggedFile(path) as file:
        return file.read()


def same(a: JetArrays, b: JetArrays) -> bool:
    names = ("features", "ids", "sizes", "jets", "labels")
    return all(getattr(a, n).tobytes() == getattr(b, n).tobytes() for n in names)


def refuses(path: Path, out: Path, *words: str, recipe: Recipe = JETCLASS) -> None:
    """The conversion ends with a DataError that names the file, and leaves nothing."""
    with pytest.raises(DataError) as caught:
        run(path, out=out, recipe=recipe)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    left = [file for file in out.rglob("*") if file.is_file()] if out.exists() else []
    assert left == []


# --- real files


@pytest.fixture(scope="module")
def jetclass2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Path]:
    source = shared_data / "JetClassII_example.root"
    out = tmp_path_factory.mktemp("jetclass2")
    report = run(source, out=out, recipe=load_recipe("jetclass2"))
    assert report.num_jets == 100
    assert report.left_out == {NO_CLASS: 0, BEYOND: 0, DROPPED: 0}
    names = [f"part_{name}" for name in (*PART, *FLAGS, "deta", "dphi")]
    names += ["jet_pt", "jet_eta", "jet_phi", "jet_sdmass", "jet_nparticles", "jet_label"]
    names += [f"aux_genpart_{n}" for n in ("pid", "isResDecayProd", "isQcdParton")]
    return flat_tree(source, names), out / "JetClassII_example.h5"


def test_real_jets_have_the_features_of_the_definitions(jetclass2: tuple[Tree, Path]) -> None:
    tree, path = jetclass2
    assert (tree["jet_eta"] < 0).sum() > 20
    agrees(read(path), tree)


def test_real_jets_are_sorted_by_pt(jetclass2: tuple[Tree, Path]) -> None:
    jets = read(jetclass2[1])
    for features in np.split(jets.features, jets.offsets[1:-1]):
        assert (np.diff(features[:, 0]) <= 0).all()


def test_deta_is_the_stored_one_with_its_sign_undone(jetclass2: tuple[Tree, Path]) -> None:
    tree, path = jetclass2
    jets = read(path)
    for jet, found in enumerate(np.split(jets.features, jets.offsets[1:-1])):
        order = np.argsort(-np.hypot(tree["part_px"][jet], tree["part_py"][jet]), kind="stable")
        deta = (tree["part_deta"][jet] * np.sign(tree["jet_eta"][jet]))[order]
        np.testing.assert_allclose(found[:, 1], np.clip(deta, -0.8, 0.8), atol=1e-6)
        dphi = tree["part_dphi"][jet][order]
        np.testing.assert_allclose(found[:, 2], np.clip(dphi, -0.8, 0.8), atol=2e-6)


FLAVOURS = {"b": [5], "c": [4], "s": [3], "q": [1, 2], "g": [21], "e": [11], "m": [13]}


def products_fit(name: str, pids: list[int]) -> bool:
    """The decay products contain those that the name of the class lists."""
    decay = name.removeprefix("X_").removeprefix("YY_")
    left = list(pids)
    if decay in ("ee", "mm"):
        return left == 2 * FLAVOURS[decay[0]]
    for word in re.findall(r"tauhtau[emh]|tau[emh]v|[em]v|[bcsqgem]", decay):
        wanted = [[15], [15]] if word.startswith("tauhtau") else []
        wanted = wanted or ([[15], [16]] if word.startswith("tau") else [])
        wanted = wanted or [FLAVOURS[letter] for letter in word if letter != "v"]
        for choices in wanted:
            fitting = [pid for pid in left if pid in choices]
            if not fitting:
                return False
            left.remove(fitting[0])
    return True


def test_the_order_of_the_188_classes_fits_the_generated_particles(
    jetclass2: tuple[Tree, Path],
) -> None:
    tree, path = jetclass2
    with JaggedFile(path) as file:
        classes, labels = file.schema.classes, file.read().labels
    assert classes[0] == "X_bb"
    assert classes[187] == "QCD_light"
    assert labels.tolist() == tree["jet_label"].tolist()
    two_prongs = 0
    for jet, label in enumerate(labels.tolist()):
        pids = np.abs(tree["aux_genpart_pid"][jet])
        decay = sorted(pids[tree["aux_genpart_isResDecayProd"][jet]].tolist())
        name = classes[label]
        if label < 15:
            assert len(decay) == 2, name
            two_prongs += 1
        if name.startswith("X_"):
            assert products_fit(name, decay), (name, decay)
        else:
            partons = pids[tree["aux_genpart_isQcdParton"][jet]].tolist()
            heavy = "".join(f * min(partons.count(i), 2) for f, i in (("b", 5), ("c", 4), ("s", 3)))
            assert name == f"QCD_{heavy or 'light'}"
    assert two_prongs > 10


@pytest.fixture(scope="module")
def sample(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    run(samples / "jetclass", out=out)
    return out


@pytest.mark.parametrize(("process", "name"), PROCESSES.items())
def test_the_committed_sample(samples: Path, sample: Path, process: str, name: str) -> None:
    source = samples / "jetclass" / "val" / f"{process}_120.root"
    path = sample / "val" / f"{process}_120.h5"
    agrees(read(path), flat_tree(source, JETCLASS.branches))
    with JaggedFile(path) as file:
        assert {file.schema.classes[label] for label in file.read().labels} == {name}
        assert file.num_jets == 20
        assert file.sources == [source.name]
        assert file.recipe == JETCLASS


def test_folders_are_mirrored(samples: Path, sample: Path) -> None:
    below = {p.relative_to(samples / "jetclass") for p in samples.rglob("*.root")}
    assert {p.relative_to(sample).with_suffix(".root") for p in sample.rglob("*.h5")} == below
    assert {p.parts[0] for p in below} == {"train", "val", "test"}


@pytest.mark.parametrize("process", ["ZJetsToNuNu", "TTBarLep", "HToBB"])
def test_a_larger_simulated_file(shared_data: Path, tmp_path: Path, process: str) -> None:
    source = shared_data / "sim_val" / f"{process}_120.root"
    report = run(source, out=tmp_path)
    assert report.files[0].classes == {PROCESSES[process]: 1000}
    agrees(read(tmp_path / f"{process}_120.h5"), flat_tree(source, JETCLASS.branches))


def test_several_processes_make_the_same_files_as_one(
    samples: Path, sample: Path, tmp_path: Path
) -> None:
    report = run(samples / "jetclass" / "val", out=tmp_path, jobs=2)
    assert [file.num_jets for file in report.files] == [20] * 10
    assert [file.source.name for file in report.files] == sorted(f"{p}_120.root" for p in PROCESSES)
    for path in sorted(tmp_path.rglob("*.h5")):
        assert same(read(path), read(sample / "val" / path.name))
        assert path.read_bytes() == (sample / "val" / path.name).read_bytes()


# --- made-up trees

SIZES = [3, 0, 1, 150, 129, 128, 0, 40, 7, 2]


def test_unsorted_empty_and_long_jets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = made_up(SIZES)
    whole = run(save(tmp_path / "a.root", tree), out=tmp_path / "1")
    agrees(read(tmp_path / "1/a.h5"), tree)
    assert whole.files[0].constituents == sum(min(n, 128) for n in SIZES)
    assert whole.left_out == {NO_CLASS: 0, BEYOND: 150 - 128 + 1, DROPPED: 0}
    assert sum(whole.files[0].classes.values()) == whole.num_jets == len(SIZES)
    monkeypatch.setattr(extract, "ENTRIES_PER_STEP", 3)
    assert run(tmp_path / "a.root", out=tmp_path / "2").left_out == whole.left_out
    assert same(read(tmp_path / "1/a.h5"), read(tmp_path / "2/a.h5"))


def test_only_empty_jets(tmp_path: Path) -> None:
    report = run(save(tmp_path / "a.root", made_up([0, 0, 0])), out=tmp_path)
    assert (report.num_jets, report.files[0].constituents) == (3, 0)
    assert read(tmp_path / "a.h5").sizes.tolist() == [0, 0, 0]


def test_labels_of_mixed_types_are_stored_by_name(tmp_path: Path) -> None:
    tree = made_up([2] * 40)
    report = run(save(tmp_path / "a.root", tree), out=tmp_path)
    counts = {name: int(tree[f"label_{name}"].sum()) for name in CLASSES}
    assert report.files[0].classes == {name: n for name, n in counts.items() if n}
    labels = read(tmp_path / "a.h5").labels
    for index, name in enumerate(CLASSES):
        assert ((labels == index) == tree[f"label_{name}"]).all()


@pytest.mark.parametrize(
    ("flags", "charge"),
    [
        ({}, 0),
        ({"isPhoton": 1}, 1),
        ({"isChargedHadron": 1}, 0),
        ({"isElectron": 1, "isMuon": 1}, 1),
    ],
)
def test_a_particle_of_no_class_is_dropped_and_counted(
    tmp_path: Path, flags: dict[str, int], charge: int
) -> None:
    tree = made_up([4, 1, 130])
    for jet, place in ((0, 2), (1, 0), (2, 5)):
        tree["part_charge"][jet][place] = charge
        for flag in FLAGS:
            tree[f"part_{flag}"][jet][place] = flags.get(flag, 0)
    report = run(save(tmp_path / "a.root", tree), out=tmp_path)
    agrees(read(tmp_path / "a.h5"), tree)
    assert read(tmp_path / "a.h5").sizes.tolist() == [3, 0, 128]
    assert report.files[0].left_out == {NO_CLASS: 3, BEYOND: 1, DROPPED: 0}


@pytest.mark.parametrize("step", [100, 2])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"QCD": 0, "Hbb": 0}, ("exactly one of label_QCD, ", "so many are: 0")),
        ({"QCD": 1, "Hbb": 1}, ("exactly one of label_QCD, ", "so many are: 2")),
        ({"QCD": 0.5, "Hbb": 0}, ("labels must be 0 or 1", "0.5")),
        ({"QCD": 0.5, "Hbb": 1}, ("labels must be 0 or 1", "0.5")),
        ({"QCD": float("nan"), "Hbb": 1}, ("labels must be 0 or 1", "nan")),
    ],
)
def test_a_jet_without_exactly_one_label_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, float],
    words: tuple[str, ...],
    step: int,
) -> None:
    tree = made_up([2] * 6)
    for name in CLASSES:
        tree[f"label_{name}"] = tree[f"label_{name}"].astype(float)
        tree[f"label_{name}"][3] = values.get(name, 0)
    monkeypatch.setattr(extract, "ENTRIES_PER_STEP", step)
    refuses(save(tmp_path / "a.root", tree), tmp_path / "out", "a.root: jet 3: ", *words)


def with_integer_labels(values: object) -> Recipe:
    changes = {"labels": {"kind": "integer", "branch": "flavour", "values": values}}
    return load(Recipe, [Layer("x", {**JETCLASS.model_dump(), **changes})])


def test_integer_labels(tmp_path: Path) -> None:
    tree = {**made_up([2] * 4), "flavour": [5, 0, 4, 5]}
    path = save(tmp_path / "a.root", tree, flavour="int32")
    recipe = with_integer_labels({"light": 0, "charm": 4, "bottom": 5})
    assert run(path, out=tmp_path, recipe=recipe).files[0].classes == {
        "light": 1,
        "charm": 1,
        "bottom": 2,
    }
    assert read(tmp_path / "a.h5").labels.tolist() == [2, 0, 1, 2]
    rule = "a.root: jet 0: flavour is not the label of any class: 5"
    refuses(path, tmp_path / "out", rule, recipe=with_integer_labels(["light", "charm", "bottom"]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("branch", "feature"),
    [
        ("part_px", "pt"),
        ("part_pz", "deta"),
        ("part_d0val", "d0"),
        ("part_dzerr", "dz_err"),
        ("jet_sdmass", "jet_sdmass"),
        ("jet_eta", "deta"),
        ("jet_phi", "dphi"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(
    tmp_path: Path, branch: str, feature: str, value: float
) -> None:
    tree = made_up([3, 0, 2, 4])
    for jet in range(4):  # all charged, so that each has impact parameters
        for flag in FLAGS:
            tree[f"part_{flag}"][jet][:] = flag == "isMuon"
        tree["part_charge"][jet][:] = 1
    if branch.startswith("part_"):
        tree[branch][2][1] = value
    else:
        tree[branch][2] = value
    path = save(tmp_path / "a.root", tree)
    refuses(path, tmp_path / "out", f"a.root: jet 2: {feature} is ", "must be finite")


def test_what_neutral_particles_have_for_an_impact_parameter_is_ignored(tmp_path: Path) -> None:
    tree = made_up([5, 5])
    for jet in range(2):
        for flag in FLAGS:
            tree[f"part_{flag}"][jet][:] = flag == "isPhoton"
        tree["part_charge"][jet][:] = 0
        for name in ("d0val", "d0err", "dzval", "dzerr"):
            tree[f"part_{name}"][jet][:] = [np.nan, 7, -1e9, 0, np.nan]
    run(save(tmp_path / "a.root", tree), out=tmp_path)
    assert not read(tmp_path / "a.h5").features[:, 3:].any()


def test_a_missing_branch_is_named_with_the_nearest(tmp_path: Path) -> None:
    tree = made_up([2, 2])
    tree["part_d0value"] = tree.pop("part_d0val")
    path = save(tmp_path / "a.root", tree)
    message = "has no branch 'part_d0val'; did you mean 'part_d0value'?"
    refuses(path, tmp_path / "out", message)


def test_a_missing_tree_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path / "a.root", made_up([2, 2]), name="trees")
    refuses(path, tmp_path / "out", "no tree 'tree'; did you mean 'trees'?")
    path = tmp_path / "none.root"
    with uproot.recreate(path) as file:
        file["tree"] = np.histogram([1, 2, 3])
    refuses(path, tmp_path / "out", "no tree 'tree'; the file has no TTree at all")


def test_an_empty_tree_is_refused(tmp_path: Path) -> None:
    refuses(save(tmp_path / "a.root", made_up([])), tmp_path / "out", "has no entries")


def test_lists_of_unequal_lengths_are_refused(tmp_path: Path) -> None:
    tree = made_up([3, 4, 5])
    tree["part_py"][1] = tree["part_py"][1][:3]
    path = save(tmp_path / "a.root", tree)
    refuses(path, tmp_path / "out", "a.root: jet 1: branch 'part_py' has 3 constituents", "has 4")


def test_a_list_where_one_number_is_expected_is_refused(tmp_path: Path) -> None:
    tree = {**made_up([3, 4]), "jet_sdmass": [[1.0], [2.0, 3.0]]}
    path = save(tmp_path / "a.root", tree, jet_sdmass="var * float32")
    refuses(path, tmp_path / "out", "'jet_sdmass'")


def test_a_branch_of_strings_is_refused(tmp_path: Path) -> None:
    tree = {**made_up([3, 4]), "jet_sdmass": ["heavy", "light"]}
    path = save(tmp_path / "a.root", tree, jet_sdmass="string")
    refuses(path, tmp_path / "out", "branch 'jet_sdmass' has the type string; expected numbers")


def test_files_that_are_not_root(tmp_path: Path) -> None:
    for content, told in (
        (b"", "is empty"),
        (b"root", "not a readable ROOT file"),
        (b"pt,eta\n1,2\n", "is no ROOT, parquet or HDF5 file of jets"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "not a readable HDF5 file"),
    ):
        (tmp_path / "a.root").write_bytes(content)
        refuses(tmp_path / "a.root", tmp_path / "out", f"a.root: {told}")
    with pytest.raises(DataError, match="no source was given"):
        run(out=tmp_path)
    with pytest.raises(DataError, match=r"absent\.root: no such file"):
        run(tmp_path / "absent.root", out=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: the folder holds no \*\.root or \*\.parquet or"):
        run(tmp_path / "empty", out=tmp_path)


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("kind", ["sample", "JetClassII"])
def test_a_truncated_file_is_refused(
    samples: Path, request: pytest.FixtureRequest, tmp_path: Path, kind: str, tenths: int
) -> None:
    source, recipe = samples / "jetclass/val/HToBB_120.root", JETCLASS
    if kind == "JetClassII":
        source = request.getfixturevalue("shared_data") / "JetClassII_example.root"
        recipe = load_recipe("jetclass2")
    content = source.read_bytes()
    path = tmp_path / "cut.root"
    path.write_bytes(content[: len(content) * tenths // 10])
    refuses(path, tmp_path / "out", recipe=recipe)


# --- what happens to outputs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "in/a.root", made_up([3, 4]))


def test_two_inputs_for_one_output_are_refused(tmp_path: Path, source: Path) -> None:
    other = save(tmp_path / "more/a.root", made_up([1]))
    with pytest.raises(DataError, match=r"would be written to .*a\.h5, and so would "):
        run(source, other, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(plan([source, source.parent, source.parent / "../in"], tmp_path)) == 1
    twice = plan([source.parent, tmp_path], tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for _, path in twice] == [
        "a.h5", "more/a.h5",
    ]  # fmt: skip


def test_a_complete_output_is_kept(tmp_path: Path, source: Path) -> None:
    first = run(source, out=tmp_path).files[0]
    before = (tmp_path / "a.h5").stat()
    second = run(source, out=tmp_path).files[0]
    after = (tmp_path / "a.h5").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert second == first.model_copy(update={"skipped": True})


def test_an_output_of_another_file_of_the_name_is_refused(tmp_path: Path, source: Path) -> None:
    other = save(tmp_path / "other/a.root", made_up([4, 3]))
    run(source, out=tmp_path)
    with pytest.raises(DataError, match=r"made from another a\.root than .*other/a\.root"):
        run(other, out=tmp_path)
    other.write_bytes(source.read_bytes())
    assert run(other, out=tmp_path).files[0].skipped


def test_an_output_of_the_same_recipe_in_other_words_is_kept(tmp_path: Path, source: Path) -> None:
    run(source, out=tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as opened:
        text = opened.attrs["recipe"].decode()
        opened.attrs["recipe"] = text.replace("select: {}\n", "# nothing is left out\n")
    assert run(source, out=tmp_path).files[0].skipped


def test_an_output_made_in_another_way_is_refused(tmp_path: Path, source: Path) -> None:
    run(source, out=tmp_path)
    other = JETCLASS.model_copy(update={"max_constituents": 2})
    with pytest.raises(DataError, match=r"a\.h5: is there already, made from a\.root with"):
        run(source, out=tmp_path, recipe=other)
    renamed = source.rename(source.with_name("b.root"))
    (tmp_path / "a.h5").rename(tmp_path / "b.h5")
    with pytest.raises(DataError, match=r"b\.h5: is there already, made from a\.root"):
        run(renamed, out=tmp_path)
    (tmp_path / "b.h5").write_bytes((tmp_path / "b.h5").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"b\.h5: not a readable HDF5 file"):
        run(renamed, out=tmp_path)


def test_overwrite_replaces_an_output(tmp_path: Path, source: Path) -> None:
    run(source, out=tmp_path)
    other = JETCLASS.model_copy(update={"max_constituents": 2})
    report = run(source, out=tmp_path, recipe=other, overwrite=True)
    assert report.left_out["constituents beyond 2"] == 3
    assert read(tmp_path / "a.h5").sizes.tolist() == [2, 2]


def test_a_failed_overwrite_keeps_the_old_output(tmp_path: Path, source: Path) -> None:
    run(source, out=tmp_path)
    before = (tmp_path / "a.h5").read_bytes()
    source.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(DataError):
        run(source, out=tmp_path, overwrite=True)
    assert (tmp_path / "a.h5").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_keeps_what_was_finished(tmp_path: Path, source: Path, jobs: int) -> None:
    bad = source.with_name("b.root")
    bad.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"b\.root: is no ROOT, parquet or HDF5 file"):
        run(source.parent, out=tmp_path / "out", jobs=jobs)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.h5"]
    assert len(read(tmp_path / "out/a.h5")) == 2


def test_an_output_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"--out .*out: is a file; a folder is needed"):
        run(source, out=tmp_path / "out")
    with pytest.raises(DataError, match=r"out/in/a\.h5: cannot be written"):
        run(source, out=tmp_path / "out" / "in")


def test_progress_goes_to_standard_error(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(source, out=tmp_path)
    assert "convert: 1/1 files" in capsys.readouterr().err


Runner = Callable[..., subprocess.CompletedProcess[str]]


def test_the_command_converts_and_refuses(jetssl: Runner, source: Path, tmp_path: Path) -> None:
    done = jetssl("convert", source, "--recipe", "jetclass", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out/a.h5")) == 2
    again = jetssl("convert", source, "--recipe", "jetclass", "--out", "out")
    assert again.returncode == 0
    wrong = jetssl("convert", source, "--recipe", "jetclass2", "--out", tmp_path / "2")
    assert wrong.returncode == 2
    assert "has no branch 'jet_label'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
