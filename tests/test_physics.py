from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jetssl_cli import physics
from jetssl_cli.physics import (
    FORMULAS,
    NEUTRAL_CLASSES,
    NO_CLASS,
    PARTICLE_CLASSES,
    delta_eta,
    delta_phi,
    particle_class,
    pseudorapidity,
    signed_d0,
    signed_dz,
    takes_list,
    transverse_momentum,
    wrap,
)

angle = st.floats(-np.pi, np.pi)
eta = st.floats(-2.0, 2.0)
momentum = st.floats(0.1, 1000.0)
length = st.floats(-50.0, 50.0)


def one(value: float) -> np.ndarray:
    return np.array([value], dtype=np.float64)


def track(pt: float, eta: float, phi: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return one(pt * np.cos(phi)), one(pt * np.sin(phi)), one(pt * np.sinh(eta))


@given(momentum, st.floats(-5, 5), angle)
def test_momentum_and_direction_are_recovered(pt: float, eta: float, phi: float) -> None:
    px, py, pz = track(pt, eta, phi)
    np.testing.assert_allclose(transverse_momentum(px, py), pt, rtol=1e-12)
    np.testing.assert_allclose(pseudorapidity(px, py, pz), eta, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(delta_eta(px, py, pz, one(1.5)), eta - 1.5, rtol=0, atol=1e-9)


def test_pseudorapidity_is_that_of_the_polar_angle() -> None:
    theta = np.linspace(0.1, 3.0, 30)
    found = pseudorapidity(np.sin(theta), np.zeros(30), np.cos(theta))
    np.testing.assert_allclose(found, -np.log(np.tan(theta / 2)), atol=1e-12)
    zero = np.zeros(2)
    assert pseudorapidity(zero, zero, np.array([1.0, -1.0])).tolist() == [np.inf, -np.inf]
    assert np.isnan(pseudorapidity(one(0), one(0), one(0))).all()


@given(st.floats(-20, 20))
@example(np.pi)
@example(-np.pi)
@example(3 * np.pi)
@example(-3 * np.pi)
@example(float(np.nextafter(-np.pi, 0)))
@example(float(np.nextafter(-np.pi, -4)))
@example(float(np.nextafter(np.pi, 4)))
@example(float(np.nextafter(np.pi, 0)))
@example(float(np.nextafter(-3 * np.pi, 0)))
def test_wrap_gives_the_same_angle_in_the_half_open_interval(value: float) -> None:
    found = float(wrap(one(value))[0])
    assert -np.pi < found <= np.pi
    turns = (value - found) / (2 * np.pi)
    assert abs(turns - round(turns)) < 1e-12


@given(momentum, angle, st.floats(-np.pi, np.pi))
@example(1.0, np.pi, -np.pi)
@example(1.0, -np.pi / 2, np.pi / 2)
def test_delta_phi_is_wrapped(pt: float, phi: float, jet_phi: float) -> None:
    px, py, _ = track(pt, 0.0, phi)
    found = float(delta_phi(px, py, one(jet_phi))[0])
    assert -np.pi < found <= np.pi
    turns = (found - (phi - jet_phi)) / (2 * np.pi)
    assert abs(turns - round(turns)) < 1e-9


def test_delta_phi_across_the_seam() -> None:
    px, py, _ = track(1.0, 0.0, -3.1)
    np.testing.assert_allclose(delta_phi(px, py, one(3.1)), 2 * np.pi - 6.2)


def by_cross_products(d0: float, dz: float, p: np.ndarray, jet: np.ndarray) -> float:
    """(jet x track) . (track x -b), as the note writes it."""
    phi = np.arctan2(p[1], p[0])
    b = np.array([d0 * np.cos(phi - np.pi / 2), d0 * np.sin(phi - np.pi / 2), dz])
    return float(np.dot(np.cross(jet, p), np.cross(p, -b)))


def test_signed_d0_equals_the_definition() -> None:
    rng = np.random.default_rng(0)
    n = 2000
    d0, dz = rng.normal(size=n) * 10 ** rng.uniform(-3, 2, (2, n))
    jet_eta, jet_phi = rng.uniform(-2, 2, n), rng.uniform(-np.pi, np.pi, n)
    eta, phi = jet_eta + rng.normal(0, 0.4, n), jet_phi + rng.normal(0, 0.4, n)
    pt = rng.exponential(20, n) + 0.1
    p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    jet = np.stack([np.cos(jet_phi), np.sin(jet_phi), np.sinh(jet_eta)])
    found = signed_d0(d0, dz, *p, jet_eta, jet_phi)
    signs = [by_cross_products(d0[i], dz[i], p[:, i], jet[:, i]) for i in range(n)]
    np.testing.assert_array_equal(found, np.abs(d0) * np.sign(signs))
    assert (found < 0).mean() == pytest.approx(0.5, abs=0.1)


def closest_approach(
    vertex: np.ndarray, p: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Impact parameters of a straight line through ``vertex``, in the file's convention."""
    px, py, pz = (float(x[0]) for x in p)
    step = -(vertex[0] * px + vertex[1] * py) / (px**2 + py**2)
    x, y, z = vertex + step * np.array([px, py, pz])  # nearest to the beam line
    return one((x * py - y * px) / np.hypot(px, py)), one(z)


def test_the_impact_parameters_of_a_line_drawn_by_hand() -> None:
    p = track(2.0, 0.0, np.pi / 2)  # along +y through (3, 5, 7): nearest at (3, 0, 7)
    d0, dz = closest_approach(np.array([3.0, 5.0, 7.0]), p)
    np.testing.assert_allclose(d0, [3.0])
    np.testing.assert_allclose(dz, [7.0])
    b = d0 * np.cos(np.pi / 2 - np.pi / 2), d0 * np.sin(np.pi / 2 - np.pi / 2)
    np.testing.assert_allclose(np.concatenate(b), [3.0, 0.0])


side = st.sampled_from([-1.0, 1.0])


@given(eta, angle, st.floats(-0.6, 0.6), st.floats(0.01, 0.6), side, momentum, st.floats(0.1, 50))
def test_d0_of_a_decay_on_the_jet_axis_has_the_sign_of_its_side(
    jet_eta: float, jet_phi: float, deta: float, dphi: float, turn: float, pt: float, flight: float
) -> None:
    axis = np.array([np.cos(jet_phi), np.sin(jet_phi), np.sinh(jet_eta)])
    p = track(pt, jet_eta + deta, jet_phi + turn * dphi)
    for where in (1, -1):  # downstream of the primary vertex, upstream of it
        d0, dz = closest_approach(where * flight * axis, p)
        found = signed_d0(d0, dz, *p, one(jet_eta), one(jet_phi))
        assert np.sign(found) == where
        np.testing.assert_array_equal(np.abs(found), np.abs(d0))


@given(eta, angle, st.floats(-0.02, 0.02), st.floats(0.1, 0.8), side, momentum, st.floats(0.1, 50))
def test_dz_of_a_decay_on_the_jet_axis_has_the_sign_of_its_side(
    jet_eta: float, jet_phi: float, dphi: float, deta: float, turn: float, pt: float, flight: float
) -> None:
    axis = np.array([np.cos(jet_phi), np.sin(jet_phi), np.sinh(jet_eta)])
    p = track(pt, jet_eta + turn * deta, jet_phi + dphi)
    for where in (1, -1):
        _, dz = closest_approach(where * flight * axis, p)
        found = signed_dz(dz, *p, one(jet_eta))
        assert np.sign(found) == where
        np.testing.assert_array_equal(np.abs(found), np.abs(dz))


@given(length, length, momentum, st.floats(-3, 3), angle, eta, angle)
def test_signs_do_not_change_in_a_mirror_across_the_beam(
    d0: float, dz: float, pt: float, eta: float, phi: float, jet_eta: float, jet_phi: float
) -> None:
    px, py, pz = track(pt, eta, phi)
    here = signed_d0(one(d0), one(dz), px, py, pz, one(jet_eta), one(jet_phi))
    there = signed_d0(one(d0), one(-dz), px, py, -pz, one(-jet_eta), one(jet_phi))
    np.testing.assert_array_equal(here, there)
    here, there = (
        signed_dz(one(dz), px, py, pz, one(jet_eta)),
        signed_dz(one(-dz), px, py, -pz, one(-jet_eta)),
    )
    np.testing.assert_array_equal(here, there)


@given(st.lists(st.tuples(length, length), max_size=20), momentum, st.floats(-3, 3), eta, angle)
def test_no_length_changes(
    lengths: list[tuple[float, float]], pt: float, eta: float, jet_eta: float, jet_phi: float
) -> None:
    d0, dz = np.array(lengths, dtype=np.float64).reshape(-1, 2).T
    n = len(d0)
    p = [np.repeat(x, n) for x in track(pt, eta, 0.3)]
    signed = signed_d0(d0, dz, *p, np.full(n, jet_eta), np.full(n, jet_phi))
    np.testing.assert_array_equal(np.abs(signed), np.abs(d0))
    signed = signed_dz(dz, *p, np.full(n, jet_eta))
    np.testing.assert_array_equal(np.abs(signed), np.abs(dz))


def test_where_the_sign_vanishes_the_length_survives() -> None:
    p = track(3.0, 0.7, 0.2)
    jet_eta = pseudorapidity(*p)
    assert signed_dz(one(-4.0), *p, jet_eta).tolist() == [4.0]
    assert signed_d0(one(0.0), one(0.0), *p, jet_eta, one(0.2)).tolist() == [0.0]


CHARGES = (-1.0, 0.0, 1.0)
TABLE = {  # flag -> class for the charges -1, 0, +1
    "photon": (NO_CLASS, 0, NO_CLASS),
    "charged_hadron": (1, NO_CLASS, 3),
    "neutral_hadron": (NO_CLASS, 2, NO_CLASS),
    "electron": (4, NO_CLASS, 5),
    "muon": (6, NO_CLASS, 7),
}


def classify(flags: set[str], charge: float) -> int:
    return int(particle_class(one(charge), **{f: one(float(f in flags)) for f in TABLE})[0])


def test_particle_classes_are_those_of_the_truth_table() -> None:
    for flag, row in TABLE.items():
        assert tuple(classify({flag}, charge) for charge in CHARGES) == row
    assert PARTICLE_CLASSES[TABLE["charged_hadron"][2]] == "hadron+"
    assert [PARTICLE_CLASSES[index] for index in NEUTRAL_CLASSES] == ["photon", "neutral hadron"]


def test_no_flag_or_several_flags_are_no_class() -> None:
    for charge in CHARGES:
        assert classify(set(), charge) == NO_CLASS
        for count in (2, 3, 4, 5):
            for flags in itertools.combinations(TABLE, count):
                assert classify(set(flags), charge) == NO_CLASS
    assert classify({"photon"}, float("nan")) in (0, NO_CLASS)


def test_the_classes_of_many_particles_are_those_of_each() -> None:
    rng = np.random.default_rng(1)
    flags = {flag: rng.integers(0, 2, 300).astype(np.float64) for flag in TABLE}
    charge = rng.integers(-1, 2, 300).astype(np.float64)
    found = particle_class(charge, **flags)
    assert found.dtype == np.uint8
    expected = [classify({flag for flag in TABLE if flags[flag][i]}, charge[i]) for i in range(300)]
    assert found.tolist() == expected


def test_formulas_can_be_named_with_inputs_and_take_no_particles() -> None:
    assert all(FORMULAS[name] is getattr(physics, name) for name in FORMULAS)
    empty = np.zeros(0)
    for name, formula in FORMULAS.items():
        inputs = inspect.signature(formula).parameters
        lists = {key: empty[:, None] if takes_list(name, key) else empty for key in inputs}
        assert formula(**lists).shape == (0,)


def test_mass_of_massless_constituents() -> None:
    """Against four-vectors about another axis; of one constituent, and of none, it is 0."""
    rng = np.random.default_rng(0)
    sizes = np.array([5, 0, 1, 40])
    pt = rng.exponential(10, sizes.sum())
    deta, dphi = rng.normal(0, 0.3, (2, len(pt)))
    found = physics.massless_mass(pt, deta, dphi, sizes)
    eta, phi = deta + 1.3, dphi - 2.9
    momenta = np.stack([np.cosh(eta), np.cos(phi), np.sin(phi), np.sinh(eta)]) * pt
    for mass, start, size in zip(found, np.cumsum(sizes) - sizes, sizes, strict=True):
        energy, *p = momenta[:, start : start + size].sum(axis=1)
        squared = energy**2 - sum(x * x for x in p)
        assert mass**2 == pytest.approx(squared, rel=1e-9, abs=1e-6)
    assert found[1] == 0
    two = physics.massless_mass(np.full(2, 3.0), np.zeros(2), np.array([0.0, np.pi]), np.array([2]))
    assert two == pytest.approx([6.0])
