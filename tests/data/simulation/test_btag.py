"""Simulated b-tagging jets: schema, truth, flavour, and the way through the recipe."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import concatenate
from jetssl_cli.data.simulation import btag, simulate
from jetssl_cli.data.simulation.btag import RADIUS, SCHEMA
from jetssl_cli.data.simulation.clustering import cluster
from jetssl_cli.data.simulation.detector import reconstruct
from jetssl_cli.data.simulation.events import Generator, Wanted
from jetssl_cli.data.simulation.hadrons import flavours, heavy_hadrons, nearest_jet
from jetssl_cli.data.simulation.processes import BTAG_PROCESSES
from jetssl_cli.data.simulation.simulate import SimulateConfig
from jetssl_cli.errors import DataError

pytestmark = pytest.mark.slow  # Pythia starts and simulates

WANTED = Wanted(20.0, 1000.0, 2.5)
REAL = ("jet_pt", "jet_phi", "jet_eta", "jet_M", "jet_flav", "n_trks", "trk_pt", "trk_phi",
        "trk_eta", "trk_ctgtheta", "trk_charge", "trk_d0", "trk_z0", "trk_vtx_index",
        "n_vertices")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("btag")
    simulate.simulate(SimulateConfig(out=out, jets=150, dataset="btag"))
    return out


@pytest.fixture(scope="module")
def tree(made):
    return ak.concatenate([uproot.open(p)["tree"].arrays() for p in sorted(made.rglob("*.root"))])


def test_branches_are_those_of_the_real_schema(made, shared_data):
    with uproot.open(made / "train" / "TTBar_000.root") as file:
        ours = {b.name: b.typename.removesuffix("[]") for b in file["tree"].branches}
    assert set(SCHEMA.types) <= set(ours)
    with uproot.open(shared_data / "btag_reduced_valid.root") as file:
        real = {b.name: b.typename for b in file["tree"].branches}
    assert set(real) == set(REAL)
    for name in REAL:
        assert ours[name] == real[name].removeprefix("std::vector<").removesuffix(">")


def test_jets_and_tracks_are_as_stated(tree):
    assert ak.all((tree.jet_pt > 20) & (tree.jet_pt < 1000) & (np.abs(tree.jet_eta) < 2.5))
    assert ak.all((ak.num(tree.trk_pt) == tree.n_trks) & (tree.n_trks >= 1) & (tree.n_trks <= 15))
    assert ak.all(tree.trk_pt[:, :-1] >= tree.trk_pt[:, 1:])
    dphi = (tree.trk_phi - tree.jet_phi + np.pi) % (2 * np.pi) - np.pi
    distance = np.hypot(tree.trk_eta - tree.jet_eta, dphi)
    assert ak.mean(distance < RADIUS) > 0.95
    assert ak.max(distance) < 2 * RADIUS
    assert ak.all(ak.sum(tree.trk_pt, axis=1) > 0)
    assert ak.all(tree.jet_M >= 0)
    assert np.unique(tree.jet_flav, return_counts=True)[1].tolist() == [200, 200, 200]


def test_tracks_of_one_vertex_begin_there(tree):
    index = tree.trk_vtx_index
    assert ak.all(tree.true_vtx_z[index] == tree.trk_prod_z)
    assert ak.all(tree.true_vtx_L3D[:, 0] == 0)
    assert ak.all(tree.true_vtx_L3D[:, 1:] >= 1e-3)
    assert ak.all(ak.num(tree.true_vtx_z) == tree.n_vertices)
    length = np.sqrt(tree.true_vtx_x**2 + tree.true_vtx_y**2 + tree.true_vtx_z**2)
    assert ak.all(abs(length - tree.true_vtx_L3D) <= 1e-9 * (1 + length))


def test_the_recipe_reads_them(made, jetssl, tmp_path):
    done = jetssl("convert", made, "--recipe", "btag", "--out", "jagged")
    assert done.returncode == 0, done.stderr
    assert "light 200, charm 200, bottom 200" in done.stdout
    parts = []
    for path in sorted((tmp_path / "jagged").rglob("*.h5")):
        with JaggedFile(path) as file:
            assert file.schema.truth == ("vertex", "origin")
            parts.append(file.read())
    jets = concatenate(parts)
    owner = np.repeat(jets.labels, jets.sizes)
    shares = [
        np.bincount(jets.truth[owner == c, 1], minlength=4) / (owner == c).sum() for c in range(3)
    ]
    primary, from_c, from_b, _ = np.transpose(shares)
    assert (primary > 0.2).all()
    assert from_b[2] > 0.1
    assert from_c[2] > 0.1
    assert from_c[1] > 0.1
    assert from_b[0] < 0.02
    assert from_c[0] < 0.02
    assert from_b[1] < 0.02
    significance = jets.features[:, 3] / jets.features[:, 4]
    tail = [(significance[owner == c] > 3).mean() for c in range(3)]
    assert tail[2] > tail[1] > tail[0]
    assert tail[2] > 1.2 * (significance[owner == 2] < -3).mean()
    origin, s = jets.truth[:, 1], significance
    assert (s[origin == 2] > 3).mean() > 5 * (s[origin == 0] > 3).mean()


def test_the_number_of_jobs_does_not_matter(monkeypatch, tmp_path):
    monkeypatch.setattr(simulate, "JETS_PER_UNIT", 9)
    for jobs in (1, 2):
        simulate.simulate(
            SimulateConfig(out=tmp_path / str(jobs), jets=18, dataset="btag", jobs=jobs,
                           processes=("TTBar",), split="val")
        )  # fmt: skip
    one, two = (
        uproot.open(tmp_path / jobs / "val" / "TTBar_000.root")["tree"].arrays() for jobs in "12"
    )
    assert one.to_list() == two.to_list()
    with pytest.raises(DataError, match="seed = 0, not 1"):
        simulate.simulate(
            SimulateConfig(out=tmp_path / "1", jets=18, dataset="btag", seed=1,
                           processes=("TTBar",), split="val")
        )  # fmt: skip


def test_flavour_is_what_a_plain_loop_finds():
    generator = Generator(BTAG_PROCESSES["TTBar"], WANTED, seed=4)
    record = generator.record(15)
    objects = reconstruct(generator.particles(record, record.visible), np.random.default_rng(0))
    jets = cluster(objects, radius=RADIUS, pt_min=20.0)
    hadrons = heavy_hadrons(record, record.vertices())
    found = flavours(hadrons, nearest_jet(hadrons, jets), len(jets.event))
    expected = [0] * len(jets.event)
    for h in range(len(hadrons.event)):
        near = []
        for j in range(len(jets.event)):
            dphi = abs(hadrons.phi[h] - jets.phi[j])
            distance = np.hypot(hadrons.eta[h] - jets.eta[j], min(dphi, 2 * np.pi - dphi))
            if hadrons.event[h] == jets.event[j] and distance < 0.3:
                near.append((distance, j))
        if near and hadrons.pt[h] > 5:
            flavour = 5 if str(abs(hadrons.pdg[h]))[0] == "5" else 4
            expected[min(near)[1]] = max(expected[min(near)[1]], flavour)
    assert found.tolist() == expected
    assert set(expected) == {0, 4, 5}
    known = (511, 521, 531, 541, 5122, 5132, 5232, 5332, 411, 421, 431, 4122, 4132, 4232, 4332)
    assert set(np.abs(hadrons.pdg).tolist()) <= set(known)


def test_a_selection_that_cannot_be_filled_is_given_up(monkeypatch):
    monkeypatch.setattr(btag, "EVENTS_TO_JUDGE", 50)
    with pytest.raises(DataError, match=r"ZprimeToBB: 0 jets of flavour 5.*cannot be filled"):
        btag.make_jets(BTAG_PROCESSES["ZprimeToBB"], Wanted(20.0, 21.0, 1e-7), 5, seed=1)
