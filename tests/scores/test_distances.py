"""Distances between generated and true jets, against small cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from reference.jets import schema

from jetssl_cli.data.jets import JetArrays
from jetssl_cli.scores.distances import compare, compare_jets, wasserstein

PHOTON, HADRON = 0, 3


def jets(sizes, *, pt=1.0, d0=0.0, kind=HADRON):
    """Jets whose constituents have this pT, d0 and particle class, and are at the axis."""
    total = sum(sizes)
    features = np.zeros((total, 7), np.float32)
    features[:, 0] = pt
    features[:, 3] = d0
    return JetArrays(
        features=features,
        ids=np.broadcast_to(np.asarray(kind, np.uint8), total).copy(),
        truth=np.zeros((total, 0), np.int32),
        sizes=np.array(sizes, np.int64),
        jets=np.zeros((len(sizes), 5), np.float32),
        labels=np.zeros(len(sizes), np.int16),
    )


def named(rows):
    return {row.name: row for row in rows}


def test_of_two_shifted_samples_it_is_the_shift():
    values = np.random.default_rng(0).normal(size=1000)
    assert wasserstein(values + 0.3, values) == pytest.approx(0.3)
    assert wasserstein(np.array([0.0, 1.0]), np.array([0.5])) == pytest.approx(0.5)
    assert wasserstein(np.zeros(0), values) is None


def test_features_are_compared_in_their_units():
    true = jets([2, 2], pt=[4.0, 2.0, 3.0, 1.0])
    found = named(compare(jets([1, 3], pt=[4.0, 4.0, 4.0, 4.0]), true, schema=schema()))
    assert found.keys() == {"pt", "deta", "dphi", "d0", "d0_err", "dz", "dz_err"}
    pt = found["pt"]
    assert pt.unit == "GeV"
    assert pt.distance == pytest.approx(1.5)
    assert pt.floor == pytest.approx(1)  # (4, 2) of the even jet and (3, 1) of the odd one
    assert pt.spread == pytest.approx(np.std([4, 2, 3, 1]))
    assert found["deta"].distance == found["deta"].spread == 0


def test_what_a_particle_does_not_have_is_left_out():
    mixed = jets([4], d0=[0.0, 0.0, 0.5, 0.5], kind=[PHOTON, PHOTON, HADRON, HADRON])
    charged = jets([1], d0=0.25)
    assert named(compare(mixed, charged, schema=schema()))["d0"].distance == pytest.approx(0.25)
    neutral = jets([3], kind=PHOTON)
    found = named(compare(neutral, charged, schema=schema()))["d0"]
    assert found.distance is None
    assert found.spread == 0


def test_whole_jets_are_compared_in_number_and_mass():
    two = jets([2])
    two.features[:, 2] = 0.5, -0.5
    found = named(compare_jets(two, jets([5]), schema=schema()))
    assert found["constituents of a jet"].distance == 3
    mass = found["mass of a jet"]
    assert mass.unit == "GeV"
    assert mass.distance == pytest.approx(2 * np.sin(0.5))
    assert mass.floor is None  # of one jet there are no halves
    assert mass.spread == 0


def test_without_the_columns_there_is_no_mass():
    columns = schema().model_copy(update={"constituents": schema().constituents[1:]})
    assert len(compare_jets(jets([2]), jets([2]), schema=columns)) == 1


def test_nothing_generated_is_no_distance():
    rows = compare(jets([0, 0]), jets([1, 2]), schema=schema())
    assert all(row.distance is None for row in rows)
    rows = compare(jets([1, 2]), jets([0, 0]), schema=schema())
    assert all(row.distance is row.floor is row.spread is None for row in rows)
