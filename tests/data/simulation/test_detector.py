"""Tracks, towers and energy flow: against plain definitions, and in the limits of physics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetssl_cli.data.simulation import tracks
from jetssl_cli.data.simulation.calorimeter import ECAL, HCAL, Calorimeter, energy_flow
from jetssl_cli.data.simulation.detector import (
    CHARGED_HADRON,
    ELECTRON,
    MUON,
    NEUTRAL_HADRON,
    PHOTON,
    reconstruct,
)
from jetssl_cli.data.simulation.events import Particles
from jetssl_cli.physics import signed_d0

C = 0.299792458


def helix(p, charge, origin, length):
    """Points of a trajectory in a field of 3.8 T along z, by small steps of the Lorentz force."""
    steps = 8_000
    step = length / steps
    position, momentum = np.array(origin, float), np.array(p, float)
    points = [position]
    for _ in range(steps):
        size = np.linalg.norm(momentum)
        middle = momentum + 0.5 * step / size * C * 3.8e-3 * charge * np.cross(momentum, [0, 0, 1])
        momentum = momentum + step / size * C * 3.8e-3 * charge * np.cross(middle, [0, 0, 1])
        position = position + step * middle / size
        points.append(position)
    return np.array(points)


def one(*values):
    return [np.array([float(value)]) for value in values]


@pytest.mark.parametrize("charge", [-1, 1])
@pytest.mark.parametrize("p", [(1.0, 0.5, 0.7), (-0.9, 0.3, -0.4), (5.0, -20.0, 11.0)])
def test_the_perigee_is_the_closest_point_of_the_trajectory(p, charge):
    origin = (7.0, -3.0, 4.0)
    back = helix([-x for x in p], -charge, origin, 40.0)  # the same path, the other way
    ahead = helix(p, charge, origin, 40.0)
    path = np.concatenate([back[::-1], ahead])
    nearest = path[np.hypot(path[:, 0], path[:, 1]).argmin()]
    found = tracks.perigee(*one(*p), *one(charge), *one(*origin))
    d0, dz, phi = (float(value[0]) for value in found)
    point = [d0 * np.sin(phi), -d0 * np.cos(phi), dz]
    assert point == pytest.approx(nearest, abs=0.01)


def test_a_track_of_a_decay_in_flight_has_positive_lifetime_sign():
    """A particle flies along the jet and decays; its daughter leaves at an angle, to either side.

    The kink makes the daughter cross the jet axis downstream of the collision.
    """
    rng = np.random.default_rng(0)
    count = 1000
    jet_phi, jet_eta = rng.uniform(-3, 3, count), rng.uniform(-2, 2, count)
    flight = rng.uniform(1, 20, count)
    x, y, z = flight * np.cos(jet_phi), flight * np.sin(jet_phi), flight * np.sinh(jet_eta)
    phi = jet_phi + rng.uniform(0.02, 0.4, count) * rng.choice([-1, 1], count)
    px, py, pz = 20 * np.cos(phi), 20 * np.sin(phi), 20 * np.sinh(jet_eta)
    found = tracks.perigee(px, py, pz, rng.choice([-1.0, 1.0], count), x, y, z)
    bent = 20 * np.cos(found.phi), 20 * np.sin(found.phi)
    signed = signed_d0(found.d0, found.dz, *bent, pz, jet_eta, jet_phi)
    assert (signed > 0).mean() > 0.999


@pytest.mark.parametrize("charge", [-1, 0, 1])
@pytest.mark.parametrize(
    "p", [(2.0, 1.0, 0.7), (-0.9, 0.3, -2.4), (0.3, 0.2, 0.4), (5.0, 1.0, 40.0)]
)
def test_where_the_calorimeter_is_hit(p, charge):
    origin = (7.0, -30.0, 4.0)
    path = helix(p, charge, origin, 12_000.0)
    outside = (np.hypot(path[:, 0], path[:, 1]) > 1290) | (np.abs(path[:, 2]) > 3000)
    x, y, z = path[outside.argmax()]
    eta, phi, inside = tracks.at_calorimeter(*one(*p), *one(charge), *one(*origin))
    assert inside.all()
    assert float(eta[0]) == pytest.approx(np.arcsinh(z / np.hypot(x, y)), abs=2e-3)
    assert abs(np.angle(np.exp(1j * (float(phi[0]) - np.arctan2(y, x))))) < 2e-3


def test_what_begins_outside_is_lost():
    *_, inside = tracks.at_calorimeter(*one(1, 1, 1), *one(0), *one(2000, 0, 0))
    assert not inside.any()


@pytest.mark.parametrize("calorimeter", [ECAL, HCAL])
@given(eta=st.floats(-2.94, 2.94), phi=st.floats(-np.pi, np.pi))
def test_a_place_lies_in_its_tower(calorimeter: Calorimeter, eta: float, phi: float) -> None:
    tower, covered = calorimeter.towers(*one(eta, phi))
    assert covered.all()
    low = [float(v[0]) for v in calorimeter.place(tower, *one(0, 0))]
    high = [float(v[0]) for v in calorimeter.place(tower, *one(1, 1))]
    assert min(low[0], high[0]) - 1e-9 <= eta <= max(low[0], high[0]) + 1e-9
    assert low[1] - 1e-9 <= phi <= high[1] + 1e-9
    middle = calorimeter.place(tower, *one(0.5, 0.5))
    assert calorimeter.towers(*middle)[0] == tower


def test_towers_end_where_the_detector_does():
    for calorimeter in (ECAL, HCAL):
        _, covered = calorimeter.towers(*one(3.0, 0.0))
        assert not covered.any()


def flow(calorimeter, deposits, tracks_there, seed=0):
    """Deposits and tracks as lists of (event, tower, energy) and (event, tower, energy, sigma)."""
    rows = np.array(deposits, float).reshape(-1, 3)
    found = np.array(tracks_there, float).reshape(-1, 4)
    return energy_flow(
        calorimeter,
        (rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2]),
        (found[:, 0].astype(np.int64), found[:, 1].astype(np.int64), found[:, 2], found[:, 3]),
        np.random.default_rng(seed),
    )


PERFECT = dataclasses.replace(ECAL, resolution=lambda energy, eta: 1e-6 * (1 + energy + 0 * eta))


def test_deposits_of_one_tower_merge_and_those_of_events_do_not():
    neutrals, factors = flow(
        PERFECT, [(0, 7, 2.0), (0, 7, 3.0), (0, 9, 1.0), (1, 7, 4.0), (1, 8, 0.4)], []
    )
    assert neutrals.event.tolist() == [0, 0, 1]
    assert neutrals.energy == pytest.approx([5.0, 1.0, 4.0], rel=1e-4)  # 0.4 GeV is too little
    assert len(factors) == 0


def test_only_what_exceeds_the_tracks_is_neutral():
    neutrals, factors = flow(
        PERFECT, [(0, 7, 10.0), (0, 7, 4.0), (0, 9, 10.0)], [(0, 7, 10.0, 0.1), (0, 9, 9.7, 0.1)]
    )
    assert neutrals.energy == pytest.approx([4.0], rel=1e-3)
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(10.0 / 9.7, rel=1e-3)  # the better measurement wins


def test_a_bad_calorimeter_leaves_good_tracks_alone():
    deposits = [(0, 2 * tower, 10.0) for tower in range(50)]
    _, factors = flow(HCAL, deposits, [(0, 2 * tower, 10.0, 0.01) for tower in range(50)])
    assert factors == pytest.approx(np.ones(50), abs=2e-3)


@pytest.mark.parametrize(("calorimeter", "energy"), [(ECAL, 50.0), (HCAL, 100.0)])
def test_towers_measure_the_energy_with_their_resolution(calorimeter, energy):
    count = 4000
    neutrals, _ = flow(calorimeter, [(event, 0, energy) for event in range(count)], [])
    centre = np.array([0.0])
    sigma = float(calorimeter.resolution(np.array([energy]), centre)[0])
    assert len(neutrals.energy) == count
    assert neutrals.energy.mean() == pytest.approx(energy, abs=4 * sigma / np.sqrt(count))
    assert neutrals.energy.std() == pytest.approx(sigma, rel=0.06)


def particles(pdg, charge, px, count, pz=0.0, mass=0.0, event=None):
    """The same particle again and again, one in each event, from the collision."""
    ones = np.ones(count)
    return Particles(
        event=np.arange(count) if event is None else event,
        pdg=np.full(count, pdg),
        px=px * ones,
        py=0 * ones,
        pz=pz * ones,
        energy=np.sqrt(px**2 + pz**2 + mass**2) * ones,
        charge=charge * ones,
        x=0 * ones,
        y=0 * ones,
        z=0 * ones,
    )


@pytest.mark.parametrize(
    ("pdg", "charge", "kind"),
    [
        (211, 1, CHARGED_HADRON),
        (-2212, -1, CHARGED_HADRON),
        (22, 0, PHOTON),
        (130, 0, NEUTRAL_HADRON),
        (-2112, 0, NEUTRAL_HADRON),
        (11, -1, ELECTRON),
        (13, -1, MUON),
    ],
)
def test_each_particle_becomes_its_object(pdg, charge, kind):
    found = reconstruct(particles(pdg, charge, 50.0, 400), np.random.default_rng(0))
    most = {CHARGED_HADRON: 0.9, ELECTRON: 0.9, MUON: 0.97}.get(kind, 0.999)
    assert (found.kind == kind).sum() >= most * 400
    here = found.kind == kind
    assert np.hypot(found.px, found.py)[here].mean() == pytest.approx(50.0, rel=0.05)
    assert (found.charge[here] == charge).all()
    neutral = np.isin(found.kind, (PHOTON, NEUTRAL_HADRON))
    for column in (found.d0, found.d0_err, found.dz, found.dz_err):
        assert ((column == 0) == neutral).all()


def test_a_hadron_without_a_track_is_seen_by_the_calorimeter():
    found = reconstruct(particles(211, 1, 50.0, 4000), np.random.default_rng(0))
    lost = np.setdiff1d(np.arange(4000), found.event[found.kind == CHARGED_HADRON])
    assert len(lost) == pytest.approx(0.05 * 4000, rel=0.25)  # the efficiency is 0.95
    assert np.isin(lost, found.event[found.kind == NEUTRAL_HADRON]).all()


def test_impact_parameters_are_smeared_by_the_stored_resolution():
    found = reconstruct(particles(211, 1, 5.0, 4000), np.random.default_rng(0))
    here = found.kind == CHARGED_HADRON
    for value, error in ((found.d0, found.d0_err), (found.dz, found.dz_err)):
        assert (value[here] / error[here]).std() == pytest.approx(1.0, abs=0.05)
        assert (value[here] / error[here]).mean() == pytest.approx(0.0, abs=0.07)


def test_resolutions_improve_with_momentum_and_worsen_forward():
    pt = np.array([0.5, 1.0, 3.0, 10.0, 50.0])
    for resolution in (tracks.d0_resolution, tracks.dz_resolution):
        for eta in (0.0, 1.2, 2.0):
            assert (np.diff(resolution(pt, np.full(5, eta))) < 0).all()
        assert (resolution(pt, np.full(5, 2.0)) > resolution(pt, np.full(5, 0.0))).all()
    muons = tracks.momentum_resolution(pt, 0 * pt, pt < 0, pt > 0)
    assert (muons < tracks.momentum_resolution(pt, 0 * pt, pt < 0, pt < 0)).all()


def test_no_track_beyond_the_tracker():
    none = np.zeros(3, np.bool_)
    values = tracks.efficiency(np.array([0.7, 5.0, 5.0]), np.array([0.0, 2.6, 0.0]), none, none)
    assert values == pytest.approx([0.0, 0.0, 0.95], abs=1e-3)
