"""Other sources than JetClass in ROOT: parquet, padded HDF5, b-tagging; and options of convert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import h5py
import numpy as np
import pytest
import uproot

from jetssl_cli.config import Layer, load
from jetssl_cli.data.convert import ConvertConfig, ConvertReport, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import FIELDS, JetArrays
from jetssl_cli.data.merge import MergeConfig, merge
from jetssl_cli.data.recipe import Recipe, load_recipe
from jetssl_cli.data.stream import to_batch
from jetssl_cli.errors import ConfigError, DataError

JETCLASS = load_recipe("jetclass")


def run(*sources: Path, out: Path, recipe: Recipe | str = JETCLASS, **more: Any) -> ConvertReport:
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    return convert(ConvertConfig(sources=sources, recipe=recipe, out=out, **more))


def read(path: Path) -> JetArrays:
    with JaggedFile(path) as file:
        return file.read()


def same(a: JetArrays, b: JetArrays) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture
def hbb(samples: Path) -> Path:
    return samples / "jetclass" / "val" / "HToBB_120.root"


# --- parquet


def as_parquet(source: Path, recipe: Recipe, out: Path, **more: Any) -> Path:
    with uproot.open(source) as file:
        arrays = file[recipe.tree].arrays(recipe.branches)
    ak.to_parquet(arrays, out, **more)
    return out


@pytest.mark.parametrize("row_group_size", [7, 1000])
def test_parquet_gives_the_same_jets_as_root(
    shared_data: Path, tmp_path: Path, row_group_size: int
) -> None:
    source, recipe = shared_data / "JetClassII_example.root", load_recipe("jetclass2")
    run(source, out=tmp_path / "root", recipe=recipe)
    table = as_parquet(source, recipe, tmp_path / "a.parquet", row_group_size=row_group_size)
    assert run(table, out=tmp_path, recipe=recipe).num_jets == 100
    same(read(tmp_path / "a.h5"), read(tmp_path / "root" / "JetClassII_example.h5"))


def test_a_folder_of_parquet_files_and_bad_ones(hbb: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = as_parquet(hbb, JETCLASS, tmp_path / "in" / "a.parquet")
    assert run(tmp_path / "in", out=tmp_path / "out").num_jets == 20
    content = path.read_bytes()
    for size in (4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"a\.parquet: (not a readable parquet|damaged)"):
            run(path, out=tmp_path / "other")
    ak.to_parquet(ak.Array({"jet_pt": [1.0]}), path)
    with pytest.raises(DataError, match=r"a\.parquet has no branch"):
        run(path, out=tmp_path / "other")
    arrays = ak.from_parquet(as_parquet(hbb, JETCLASS, path))
    for lists in ([[1.0]] * 19 + [None], [[1.0]] + [None] * 19, [[[1.0, 2.0]]] * 20):
        ak.to_parquet(ak.with_field(arrays, lists, "part_px"), path)
        with pytest.raises(DataError, match=r"'part_px' has the type .*; expected numbers"):
            run(path, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- padded HDF5


def padded(jets: JetArrays, path: Path, length: int = 128) -> Path:
    """The same jets as JetSSL-Lite stores them."""
    mask = np.arange(length) < jets.sizes[:, None]
    csts = np.zeros((len(jets), length, jets.features.shape[1]), np.float32)
    ids = np.zeros((len(jets), length), np.int64)
    csts[mask], ids[mask] = jets.features, jets.ids
    with h5py.File(path, "w") as file:
        file.update({"csts": csts, "csts_id": ids, "mask": mask})
        file.update({"jets": jets.jets, "labels": jets.labels.astype(np.int64)})
    return path


def test_padded_files_give_the_same_jets(hbb: Path, tmp_path: Path) -> None:
    run(hbb, out=tmp_path)
    jets = read(tmp_path / "HToBB_120.h5")
    report = run(padded(jets, tmp_path / "lite.h5"), out=tmp_path / "out")
    assert (report.num_jets, report.classes) == (20, {"Hbb": 20})
    same(read(tmp_path / "out/lite.h5"), jets)
    shuffled = jets.reorder(np.arange(len(jets.ids))[::-1])
    reverse = JetArrays(
        shuffled.features,
        shuffled.ids,
        shuffled.truth,
        jets.sizes[::-1],
        jets.jets[::-1],
        jets.labels[::-1],
    )
    run(padded(reverse, tmp_path / "reverse.h5"), out=tmp_path / "out")
    same(read(tmp_path / "out/reverse.h5"), jets.take(np.arange(20)[::-1]))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels", lambda v: v + 10, "jet 0: a label is no class"),
        ("labels", lambda v: v * np.nan, "jet 0: a label is no class"),
        ("labels", lambda v: v + 0.5, "jet 0: a label is no class"),
        ("csts_id", lambda v: v - 1, "jet 0: a particle id is none"),
        ("csts_id", lambda v: v * np.nan, "jet 0: a particle id is none"),
        ("csts", lambda v: v * np.nan, "jet 0: a constituent feature is not finite"),
        ("jets", lambda v: v * np.inf, "jet 0: a jet feature is not finite"),
        ("csts", lambda v: v[:, :, :5], r"csts has the shape \(20, 128, 5\)"),
        ("mask", lambda v: v[:, :5], r"mask has the shape \(20, 5\)"),
        ("mask", None, "it has no array 'mask'"),
    ],
)
def test_padded_files_that_do_not_fit(
    hbb: Path, tmp_path: Path, name: str, change: Callable | None, message: str
) -> None:
    run(hbb, out=tmp_path)
    path = padded(read(tmp_path / "HToBB_120.h5"), tmp_path / "lite.h5")
    with h5py.File(path, "r+") as file:
        values = file[name][:]
        del file[name]
        if change is not None:
            file[name] = change(values)
    with pytest.raises(DataError, match=rf"lite\.h5: {message}|lite\.h5: .*{message}"):
        run(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_jagged_file_is_no_source(hbb: Path, tmp_path: Path) -> None:
    run(hbb, out=tmp_path)
    with pytest.raises(DataError, match=r"HToBB_120\.h5: is converted already"):
        run(tmp_path / "HToBB_120.h5", out=tmp_path / "out")
    with pytest.raises(DataError, match="would be written over itself"):
        run(tmp_path / "HToBB_120.h5", out=tmp_path, overwrite=True)


# --- precision, limits, bad files


def test_half_precision(hbb: Path, tmp_path: Path) -> None:
    run(hbb, out=tmp_path / "single")
    run(hbb, out=tmp_path / "half", half=True)
    single, half = (read(tmp_path / kind / "HToBB_120.h5") for kind in ("single", "half"))
    assert half.features.dtype == np.float16
    np.testing.assert_array_equal(half.features, single.features.astype(np.float16))
    for name in ("ids", "sizes", "jets", "labels"):
        np.testing.assert_array_equal(getattr(half, name), getattr(single, name))
    assert to_batch(half).features.dtype == to_batch(single).features.dtype
    with pytest.raises(DataError, match="is there already, made from"):
        run(hbb, out=tmp_path / "half")
    report = merge(MergeConfig(sources=(tmp_path / "half",), out=tmp_path / "merged.h5"))
    assert read(report.out).features.dtype == np.float16
    with pytest.raises(DataError, match="they cannot be merged"):
        merge(MergeConfig(sources=(tmp_path / "half", tmp_path / "single"), out=tmp_path / "x.h5"))


def test_a_number_too_large_for_half_precision_is_refused(hbb: Path, tmp_path: Path) -> None:
    with uproot.open(hbb) as file:
        arrays = file["tree"].arrays(JETCLASS.branches)
    ak.to_parquet(ak.with_field(arrays, arrays.part_px * 1e5, "part_px"), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: jet 0: .* is too large for float16"):
        run(tmp_path / "a.parquet", out=tmp_path / "out", half=True)
    fewer = changed("jetclass", select={"jet_pt": {"max": float(arrays.jet_pt[0]) - 0.1}})
    second = int(np.flatnonzero(arrays.jet_pt < arrays.jet_pt[0] - 0.1)[0])
    with pytest.raises(DataError, match=rf"a\.parquet: jet {second}: .* is too large"):
        run(tmp_path / "a.parquet", out=tmp_path / "out", half=True, recipe=fewer)
    assert not (tmp_path / "out").exists()


def test_the_largest_number_of_constituents(hbb: Path, tmp_path: Path) -> None:
    run(hbb, out=tmp_path / "all")
    report = run(hbb, out=tmp_path / "few", max_constituents=10)
    whole, few = (read(tmp_path / kind / "HToBB_120.h5") for kind in ("all", "few"))
    same(few, whole.first(10))
    assert report.left_out["constituents beyond 10"] == len(whole.ids) - len(few.ids) > 0
    assert run(hbb, out=tmp_path / "few", max_constituents=10).files[0].skipped
    same(whole, read(run(hbb, out=tmp_path / "more", max_constituents=999).files[0].output))


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_files_can_be_skipped(samples: Path, tmp_path: Path, jobs: int) -> None:
    for name in ("HToBB_120.root", "HToCC_120.root", "TTBar_120.root"):
        (tmp_path / name).write_bytes((samples / "jetclass/val" / name).read_bytes())
    bad = tmp_path / "HToCC_120.root"
    bad.write_bytes(bad.read_bytes()[:5000])
    sources = sorted(tmp_path.glob("*.root"))
    report = run(*sources, out=tmp_path / "out", skip_bad=True, jobs=jobs)
    assert [file.source.name for file in report.files] == ["HToBB_120.root", "TTBar_120.root"]
    assert [file.path for file in report.bad] == [bad]
    noted = json.loads((tmp_path / "out/bad_files.json").read_text())
    assert noted == [{"path": str(bad), "reason": report.bad[0].reason}]
    assert str(bad) in report.bad[0].reason
    bad.write_bytes((samples / "jetclass/val/HToCC_120.root").read_bytes())
    assert run(*sources, out=tmp_path / "out", skip_bad=True).num_jets == 60
    assert not (tmp_path / "out/bad_files.json").exists()
    bad.write_bytes(b"")
    again = run(*sources, out=tmp_path / "out", skip_bad=True, overwrite=True)
    assert again.bad[0].reason.endswith("HToCC_120.h5 is of an earlier conversion")
    with pytest.raises(
        DataError, match=r"HToBB_120\.h5: is there already"
    ):  # not the source's fault
        run(*sources, out=tmp_path / "out", skip_bad=True, half=True)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        run(*sources, out=tmp_path / "file" / "in", skip_bad=True)
    with pytest.raises(DataError, match="none of the 1 sources can be converted"):
        run(bad, out=tmp_path / "none", skip_bad=True)


def test_a_jet_with_ten_thousand_constituents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([3, 10_000, 0, 5])
    table = dict.fromkeys(JETCLASS.branches, 1.0)
    columns: dict[str, Any] = {}
    for name in table:
        values = rng.uniform(0.1, 1, sizes.sum())
        if name.startswith("part_is") or name == "part_charge":
            values = np.full(sizes.sum(), float(name == "part_isPhoton"))
        columns[name] = (
            ak.unflatten(values, sizes)
            if name.startswith("part_")
            else np.full(4, float(name in ("label_Hbb", "jet_pt")))
        )
    ak.to_parquet(ak.Array(columns), tmp_path / "a.parquet")
    report = run(tmp_path / "a.parquet", out=tmp_path)
    assert read(tmp_path / "a.h5").sizes.tolist() == [3, 128, 0, 5]
    assert report.left_out["constituents beyond 128"] == 9872


# --- what a recipe may say


def changed(name: str, **changes: Any) -> Recipe:
    return load(Recipe, [Layer("x", {**load_recipe(name).model_dump(), **changes})])


def test_jets_can_be_selected_and_labels_dropped(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "btag_reduced_valid.root"
    run(source, out=tmp_path / "all", recipe="btag_reduced")
    whole = read(tmp_path / "all" / "btag_reduced_valid.h5")
    labels = {"kind": "integer", "branch": "jet_flav", "values": {"light": 0, "b": 5}, "drop": [4]}
    select = {"jet_pt": {"min": 20.0, "max": 100.0}, "jet_eta": {"max": 1.0}}
    recipe = changed("btag_reduced", labels=labels, select=select)
    report = run(source, out=tmp_path / "some", recipe=recipe)
    some = read(tmp_path / "some" / "btag_reduced_valid.h5")
    pt, eta = whole.jets[:, 0], whole.jets[:, 1]
    wanted = (whole.labels != 1) & (pt >= 20) & (pt <= 100) & (eta <= 1)
    expected = whole.take(np.flatnonzero(wanted))
    np.testing.assert_array_equal(some.features, expected.features)
    np.testing.assert_array_equal(some.labels, expected.labels // 2)
    left_out = report.left_out
    assert left_out["jets of a label to drop"] == (whole.labels == 1).sum()
    jets_left_out = sum(n for reason, n in left_out.items() if reason.startswith("jets"))
    assert jets_left_out == len(whole) - len(some)
    none = changed("btag_reduced", select={"jet_pt": {"min": 1e6}})
    with pytest.raises(DataError, match="no jet is left: 2,860 jets outside the limits of jet_pt"):
        run(source, out=tmp_path / "none", recipe=none)
    for wrong, message in (
        ({"select": {"jet_pz": {"min": 1.0}}}, "did you mean 'jet_pt'"),
        ({"labels": {**labels, "drop": [5]}}, "both a class and in 'drop'"),
    ):
        with pytest.raises(ConfigError, match=message):
            changed("btag_reduced", **wrong)


def test_absent_features_give_fewer_columns(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "btag_reduced_test.root"
    run(source, out=tmp_path, recipe="btag_reduced")
    with JaggedFile(tmp_path / "btag_reduced_test.h5") as file:
        names = [feature.name for feature in file.schema.constituents]
        assert (names, file.schema.ids) == (["pt", "deta", "dphi", "d0", "dz"], ())
        assert file.schema.truth == ("vertex",)
        jets = file.read()
    with h5py.File(tmp_path / "btag_reduced_test.h5") as stored:
        assert set(stored["constituents"]) == {"features", "truth"}
    assert jets.features.shape[1] == 5
    assert not jets.ids.any()
    with uproot.open(source) as root:
        tree = root["tree"].arrays()
    order = ak.argsort(tree.trk_pt, ascending=False, stable=True)
    sorted_tree = {name: ak.to_numpy(ak.flatten(tree[name][order])) for name in tree.fields[6:14]}
    np.testing.assert_allclose(jets.features[:, 0], sorted_tree["trk_pt"], rtol=1e-6)
    np.testing.assert_array_equal(jets.truth[:, 0], sorted_tree["trk_vtx_index"])
    np.testing.assert_allclose(np.abs(jets.features[:, 3]), np.abs(sorted_tree["trk_d0"]))


def test_tracks_of_b_jets_have_the_positive_tail_of_decays_in_flight(
    shared_data: Path, tmp_path: Path
) -> None:
    run(shared_data, out=tmp_path, recipe="btag_reduced", skip_bad=True)
    jets = [read(path) for path in sorted(tmp_path.glob("btag*.h5"))]
    d0, dz, owner = (
        np.concatenate(parts)
        for parts in zip(
            *((j.features[:, 3], j.features[:, 4], np.repeat(j.labels, j.sizes)) for j in jets),
            strict=True,
        )
    )
    for values in (d0, dz):
        displaced = (np.abs(values) > 0.1) & (np.abs(values) < 2)
        light, bottom = ((values[displaced & (owner == c)] > 0).mean() for c in (0, 2))
        assert 0.45 < light < 0.55
        assert bottom > 0.6


def test_the_full_schema_of_b_tagging(tmp_path: Path) -> None:
    """Tracks of two jets: from the primary vertex, a c, a b hadron and elsewhere."""
    tracks = {
        "trk_pt": [[5.0, 9.0, 7.0], [3.0, 4.0]],
        "trk_eta": [[0.1, 0.2, 0.3], [-1.0, -1.1]],
        "trk_phi": [[3.1, -3.1, 3.0], [0.0, 0.1]],
        "trk_d0": [[0.01, 0.2, -0.3], [0.0, 0.5]],
        "trk_d0err": [[0.01, 0.02, 0.03], [0.04, 0.05]],
        "trk_z0": [[0.1, -0.2, 0.3], [0.4, 0.5]],
        "trk_z0err": [[0.1, 0.2, 0.3], [0.4, 0.5]],
        "trk_charge": [[1.0, -1.0, 1.0], [-1.0, 1.0]],
        "trk_pdg_id": [[211, 11, -13], [13, 2212]],
        "trk_vtx_index": [[0, 1, 2], [0, -1]],
        "trk_prod_z": [[0.0, 4.5, 7.25], [1e-7, 2.0]],
        "hadron_z": [[4.5, 7.25], [9.0]],
        "hadron_pdgid": [[-511, 421], [5122]],
    }
    jets = {
        "jet_pt": [50.0, 30.0],
        "jet_eta": [0.15, -1.0],
        "jet_phi": [3.12, 0.0],
        "jet_M": [5.0, 3.0],
        "n_trks": [3, 2],
        "jet_flav": [5, 0],
    }
    kinds = dict.fromkeys(tracks, "var * float32") | dict.fromkeys(jets, "float32")
    kinds |= dict.fromkeys(("trk_pdg_id", "trk_vtx_index", "hadron_pdgid"), "var * int32")
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("tree", kinds).extend(
            {
                name: ak.values_astype(ak.Array(v), kinds[name].split()[-1])
                for name, v in tracks.items()
            }
            | {name: np.asarray(values, np.float32) for name, values in jets.items()}
        )
    report = run(tmp_path / "a.root", out=tmp_path, recipe="btag")
    assert report.classes == {"light": 1, "bottom": 1}
    found = read(tmp_path / "a.h5")
    assert found.labels.tolist() == [2, 0]
    assert found.features[:, 0].tolist() == [9, 7, 5, 4, 3]
    assert found.ids.tolist() == [4, 7, 3, 3, 6]
    with JaggedFile(tmp_path / "a.h5") as file:
        assert file.schema.truth == ("vertex", "origin")
    assert found.truth.tolist() == [[1, 2], [2, 1], [0, 0], [-1, 3], [0, 0]]
    np.testing.assert_allclose(found.features[0, 2], -3.1 - 3.12 + 2 * np.pi, rtol=1e-5)
