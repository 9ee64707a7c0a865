"""What comes out of Pythia, and what is taken from it."""

from __future__ import annotations

import numpy as np
import pytest

from jetssl_cli.data.simulation import jetclass
from jetssl_cli.data.simulation.clustering import Jets, cluster, soft_drop_mass
from jetssl_cli.data.simulation.detector import Objects, reconstruct
from jetssl_cli.data.simulation.events import Generator, Products, Wanted
from jetssl_cli.data.simulation.jetclass import (
    FLAGS,
    RADIUS,
    TYPES,
    branches_of,
    first,
    jets_of_events,
    make_jets,
    match,
)
from jetssl_cli.data.simulation.processes import CLASSES, PROCESSES, find
from jetssl_cli.errors import ConfigError, DataError

pytestmark = pytest.mark.slow  # Pythia starts and simulates

WANTED = Wanted()
LIFETIMES = {211: True, 321: True, 130: True, 2112: True, 310: False, 3122: False, 411: False}


@pytest.fixture(scope="module")
def generated():
    return {
        name: Generator(PROCESSES[name], WANTED, seed=3).batch(40)
        for name in ("HToBB", "TTBarLep", "ZToQQ")
    }


def test_batches_are_the_events_of_pythia_one_by_one():
    """Vertices above all: those of a batch are misaligned, and put right."""
    batch, _ = Generator(PROCESSES["HToBB"], WANTED, seed=3).batch(12)
    pythia = Generator(PROCESSES["HToBB"], WANTED, seed=3)._pythia
    rows = []
    for number in range(12):
        assert pythia.next()
        event = pythia.event
        rows += [
            (number, p.id(), p.px(), p.py(), p.pz(), p.e(), p.charge(),
             p.xProd(), p.yProd(), p.zProd())
            for p in (event[i] for i in range(event.size()))
            if p.isFinal() and abs(p.id()) not in (12, 14, 16)
        ]  # fmt: skip
    names = ("event", "pdg", "px", "py", "pz", "energy", "charge", "x", "y", "z")
    for name, values in zip(names, np.array(rows).T, strict=True):
        np.testing.assert_array_equal(getattr(batch, name), values, err_msg=name)
    assert (np.hypot(batch.x, batch.y) > 1).sum() > 100


def test_what_lives_for_more_than_a_metre_is_stable(generated):
    particles, _ = generated["HToBB"]
    found = set(np.abs(particles.pdg).tolist())
    assert {number: number in found for number in LIFETIMES} == LIFETIMES
    assert not found & {12, 14, 16}


def test_energy_and_momentum_of_an_event_are_conserved(generated):
    """The visible particles balance the neutrinos of the Z."""
    particles, _ = generated["HToBB"]
    for number in range(40):
        here = particles.event == number
        missing = np.hypot(particles.px[here].sum(), particles.py[here].sum())
        assert missing > 300
        assert particles.energy[here].sum() < 13_000 - missing


def test_decay_products_are_complete(generated):
    _, higgs = generated["HToBB"]
    b = np.abs(higgs.pdg) == 5
    assert np.bincount(higgs.event[b]).tolist() == [2] * 40
    mass = [
        np.sqrt(max(0, sum_of(higgs, keep, "energy") ** 2
                    - sum(sum_of(higgs, keep, f"p{a}") ** 2 for a in "xyz")))
        for keep in (b & (higgs.event == number) for number in range(40))
    ]  # fmt: skip
    assert mass == pytest.approx([125.0] * 40, abs=0.5)
    _, top = generated["TTBarLep"]
    for sign in (-1, 1):
        here = top.group == sign
        assert np.bincount(top.event[here]).tolist() == [3] * 40
        assert set(top.pdg[here].tolist()) <= {
            sign * number for number in (1, 3, 5, -11, -13, 12, 14)
        }
    _, z = generated["ZToQQ"]
    assert np.bincount(z.event).tolist() == [2] * 40
    assert set(np.abs(z.pdg).tolist()) <= {1, 2, 3, 4, 5}


def sum_of(products, keep, name):
    return getattr(products, name)[keep].sum()


@pytest.fixture(scope="module")
def jets(generated):
    particles, products = generated["HToBB"]
    objects = reconstruct(particles, np.random.default_rng(0))
    return objects, cluster(objects, radius=RADIUS, pt_min=300.0), products


def test_jets_are_the_sums_of_their_constituents(jets):
    objects, found, _ = jets
    ends = np.cumsum(found.sizes)
    assert len(found.event) >= 40
    for number, rows in enumerate(np.split(found.rows, ends[:-1])):
        for name in ("px", "py", "pz", "energy"):
            total = getattr(objects, name)[rows].sum()
            assert total == pytest.approx(getattr(found, name)[number], rel=1e-9, abs=1e-6)
        assert (objects.event[rows] == found.event[number]).all()
        assert (np.diff(np.hypot(objects.px, objects.py)[rows]) <= 0).all()


def test_the_jet_has_the_momentum_of_the_boson_within_the_resolution(jets):
    _, found, products = jets
    group = match(PROCESSES["HToBB"], found, products)
    assert (group >= 0).sum() > 30
    number = np.abs(products.pdg) == 5
    ratio = []
    for jet in np.flatnonzero(group >= 0):
        keep = number & (products.event == found.event[jet])
        boson = np.hypot(sum_of(products, keep, "px"), sum_of(products, keep, "py"))
        ratio.append(found.pt[jet] / boson)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.05)
    assert np.std(ratio) < 0.2


def test_a_matched_jet_holds_its_decay_products(jets):
    _, found, products = jets
    group = match(PROCESSES["HToBB"], found, products)
    quarks = np.abs(products.pdg) == 5
    eta = np.arcsinh(products.pz / np.hypot(products.px, products.py))
    phi = np.arctan2(products.py, products.px)
    for jet in range(len(group)):
        mine = quarks & (products.event == found.event[jet])
        dphi = np.angle(np.exp(1j * (phi[mine] - found.phi[jet])))
        near = np.hypot(eta[mine] - found.eta[jet], dphi) < RADIUS
        assert (group[jet] >= 0) == near.all()


def two_jets() -> Jets:
    values = [np.array([500.0, -500.0]), np.zeros(2), np.zeros(2), np.full(2, 500.0)]
    return Jets(np.zeros(2, np.int64), *values, np.zeros(2, np.int64), np.zeros(0, np.int64))


def products_of(*rows) -> Products:
    """(group, pdg, pt, phi) of each."""
    group, pdg, pt, phi = (np.array(column) for column in zip(*rows, strict=True))
    return Products(
        np.zeros(len(pdg), np.int64), group.astype(np.int64), pdg.astype(np.int64),
        pt * np.cos(phi), pt * np.sin(phi), 0.0 * pt, 1.0 * pt,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("products", "found"),
    [
        ([(1, 5, 300, 0.3), (1, -11, 200, -0.3), (1, 12, 100, 2.0)], [0, -1]),
        ([(1, 5, 300, 0.3), (1, -11, 200, 1.0)], [-1, -1]),  # the lepton is outside
        ([(1, 5, 300, 0.3), (1, 12, 100, 0.0)], [-1, -1]),  # no lepton
        ([(-1, -5, 300, 0.3), (-1, 13, 200, -0.3), (1, 5, 300, 3.0), (1, -11, 9, -3.0)], [0, 1]),
        ([(-1, -5, 300, 0.3), (1, -11, 200, -0.3), (1, 5, 300, 3.0), (-1, 13, 9, -3.0)], [-1, -1]),
    ],
)
def test_matching(products, found):
    assert match(PROCESSES["TTBarLep"], two_jets(), products_of(*products)).tolist() == found


def test_soft_drop_against_a_pair_of_prongs():
    """Two massless prongs far apart: kept with both, or without the softer one if z < 0.1."""

    def mass(soft):
        pt, phi = np.array([300.0, soft]), np.array([0.0, 0.5])
        none = np.zeros(2)
        objects = Objects(np.zeros(2, np.int64), np.zeros(2, np.int64), none, pt * np.cos(phi),
                          pt * np.sin(phi), none, pt, none, none, none, none,
                          np.zeros(2, np.int64))  # fmt: skip
        found = cluster(objects, radius=RADIUS, pt_min=10.0)
        assert found.sizes.tolist() == [2]
        return float(soft_drop_mass(objects, found, radius=RADIUS)[0])

    assert mass(100.0) == pytest.approx(np.sqrt(2 * 300 * 100 * (1 - np.cos(0.5))), rel=1e-6)
    assert mass(20.0) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("name", ["ZJetsToNuNu", "HToWW2Q1L", "TTBar"])
def test_the_branches_of_jets(name):
    process = PROCESSES[name]
    made = make_jets(process, WANTED, 12, seed=8)
    assert {key: value.dtype for key, value in made.items()} == {
        key: np.dtype(kind) for key, kind in TYPES.items()
    }
    sizes = made["jet_nparticles"].astype(int)
    total = sum(np.asarray(made[f"label_{label}"]).astype(int) for label in CLASSES)
    assert total.tolist() == [1] * 12
    assert (made[f"label_{process.label}"] == 1).all()
    assert ((made["jet_pt"] > 500) & (made["jet_pt"] < 1000)).all()
    assert (np.abs(made["jet_eta"]) < 2).all()
    assert (sum(made[flag] for flag in FLAGS) == 1).all()
    owner = np.repeat(np.arange(12), sizes)
    for axis in ("px", "py", "pz", "energy"):
        sums = np.bincount(owner, made[f"part_{axis}"], 12)
        pt, eta, phi = (made[f"jet_{n}"].astype(float) for n in ("pt", "eta", "phi"))
        jet = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta)}
        expected = jet.get(axis, made["jet_energy"])
        assert sums == pytest.approx(expected, rel=1e-3, abs=0.1)
    eta = np.arcsinh(made["part_pz"] / np.hypot(made["part_px"], made["part_py"]))
    flip = np.sign(made["jet_eta"])[owner]
    assert made["part_deta"] == pytest.approx(flip * (eta - made["jet_eta"][owner]), abs=1e-4)
    assert np.abs(made["part_dphi"]).max() < 1.6
    assert (made["aux_truth_match"] == 50).all() == (name == "ZJetsToNuNu")
    if process.matched:
        assert np.median(made["aux_genpart_pt"] / made["jet_pt"]) == pytest.approx(1.0, abs=0.2)
        assert np.abs(made["aux_genpart_eta"] - made["jet_eta"]).max() < 0.8
        assert set(np.abs(made["aux_genpart_pid"])) == {25 if "H" in name else 6}


def test_more_jets_begin_with_the_same_ones():
    process = PROCESSES["HToBB"]
    few, many = make_jets(process, WANTED, 5, seed=1), make_jets(process, WANTED, 9, seed=1)
    for name, values in first(many, 5).items():
        np.testing.assert_array_equal(values, few[name])
    other = make_jets(process, WANTED, 5, seed=2)
    assert not np.array_equal(other["jet_pt"], few["jet_pt"])


def test_at_most_128_constituents_are_stored(jets):
    objects, found, products = jets
    group = match(PROCESSES["HToBB"], found, products)
    keep = np.flatnonzero(group >= 0)
    many = Objects(**{name: np.tile(getattr(objects, name), 6) for name in vars(objects)})
    fat = found.take(keep)
    rows = [r + len(objects.event) * np.arange(6)[:, None] for r in
            np.split(fat.rows, np.cumsum(fat.sizes)[:-1])]  # fmt: skip
    fat = Jets(fat.event, fat.px, fat.py, fat.pz, fat.energy, fat.sizes * 6,
               np.concatenate([r.T.ravel() for r in rows]))  # fmt: skip
    made = branches_of(PROCESSES["HToBB"], many, fat, products, group[keep])
    assert made["jet_nparticles"].max() == 128
    assert made["jet_nparticles"].sum() == len(made["part_px"])


def test_a_selection_that_cannot_be_filled_is_given_up(monkeypatch):
    monkeypatch.setattr(jetclass, "EVENTS_TO_JUDGE", 100)
    with pytest.raises(DataError, match=r"HToBB: 0 jets of 500 to 1000 GeV .* cannot be filled"):
        make_jets(PROCESSES["HToBB"], Wanted(eta_max=1e-7), 5, seed=1)


def test_no_event_no_jet():
    particles, products = Generator(PROCESSES["HToBB"], WANTED, seed=3).batch(1)
    nothing = type(particles)(**{name: value[:0] for name, value in vars(particles).items()})
    made = jets_of_events(PROCESSES["HToBB"], WANTED, nothing, products, np.random.default_rng(0))
    assert all(len(values) == 0 for values in made.values())


def test_an_unknown_process_is_refused():
    with pytest.raises(ConfigError, match=r"no process 'HToBb'; did you mean 'HToBB'\?"):
        find(["HToBb"])
    assert [process.name for process in find([])] == list(PROCESSES)
    assert [process.name for process in find(["TTBar", "TTBar"])] == ["TTBar"]


def test_processes_cannot_be_confused():
    assert sorted(process.number for process in PROCESSES.values()) == list(range(10))
    assert {process.label for process in PROCESSES.values()} == set(CLASSES)
