"""Subjets: FastJet through the package against anti-kT written out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.antikt import anti_kt

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.stream import JetStream, to_batch
from jetssl_cli.data.subjets import subjets
from jetssl_cli.data.write import write
from jetssl_cli.errors import ConfigError, DataError


def constituents(sizes, seed, spread=0.15):
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    pt = rng.exponential(20, total) + 0.1
    return pt, *rng.normal(0, spread, (2, total)), np.array(sizes, np.int64)


@given(
    sizes=st.lists(st.integers(0, 14), max_size=8),
    seed=st.integers(0, 10_000),
    radius=st.sampled_from([0.05, 0.1, 0.4]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
@settings(max_examples=150)
def test_they_are_those_of_the_definition(sizes, seed, radius, dtype):
    *columns, sizes = constituents(sizes, seed)
    columns = [column.astype(dtype) for column in columns]
    found = subjets(*columns, sizes, radius)
    bounds = np.cumsum(sizes)[:-1]
    jets = zip(*(np.split(column.astype(float), bounds) for column in columns), strict=True)
    wanted = [anti_kt(*map(np.ndarray.tolist, jet), radius) for jet in jets] if len(sizes) else []
    assert found.tolist() == [number for jet in wanted for number in jet]


def test_azimuth_goes_round_and_rapidity_is_far_from_zero():
    phi = np.array([np.pi - 0.01, -np.pi + 0.01, 0.0])
    eta = np.array([4.0, 4.0, -4.0])
    assert subjets(np.array([5.0, 1.0, 3.0]), eta, phi, np.array([3]), 0.1).tolist() == [0, 0, 1]


def test_a_constituent_without_momentum_belongs_to_a_subjet_too():
    pt, deta = np.array([0.0, 5, 0, 0, 3]), np.array([0.5, 0.5, 0, 1, 1])
    found = subjets(pt, deta, np.zeros(5), np.array([3, 2]), 0.1)
    assert found.tolist() == [1, 0, 1, 1, 0]  # without momentum, no direction: one subjet


@pytest.mark.parametrize(("column", "value"), [(0, -1.0), (0, np.nan), (1, np.inf), (2, np.nan)])
def test_values_that_have_no_subjet(column, value):
    *columns, sizes = constituents([3, 2], 0)
    columns[column][4] = value
    with pytest.raises(DataError, match=f"{['pt', 'deta', 'dphi'][column]} = .* constituent 4"):
        subjets(*columns, sizes, 0.1)


def test_without_fastjet_the_message_says_what_to_install(jagged: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastjet", None)
    with pytest.raises(ConfigError, match=r"pip install 'jetssl\[subjets\]'"):
        JetStream([jagged / "val.h5"], batch_size=10, subjet_radius=0.1)


def test_nothing_is_printed(capfd):
    *columns, sizes = constituents([3], 0)
    subjets(*columns, sizes, 0.1)
    assert capfd.readouterr().out == ""


def test_the_reader_finds_them_when_asked(jagged: Path):
    settings = {"batch_size": 70, "max_constituents": 20}
    (first, *_), (plain, *_) = (
        list(JetStream([jagged / "val.h5"], **settings, subjet_radius=radius))
        for radius in (0.1, None)
    )
    assert plain.subjets is None
    pt, deta, dphi = first.features.numpy().T[:3]
    wanted = subjets(pt, deta, dphi, first.packing.sizes.numpy(), 0.1)
    assert first.subjets.tolist() == wanted.tolist()
    shuffled = next(JetStream([jagged / "val.h5"], **settings, subjet_radius=0.1).forever(1))
    assert shuffled.subjets.max() > 0
    with JaggedFile(jagged / "val.h5") as file:
        assert to_batch(file.read(0, 3)).subjets is None


def test_columns_in_another_order_are_refused(tmp_path: Path, jagged: Path):
    recipe = load_recipe("jetclass")
    features = dict(reversed(recipe.constituents.features.items()))
    of = recipe.constituents.model_copy(update={"features": features})
    with JaggedFile(jagged / "val.h5") as file:
        jets = file.read(0, 4)
    path = tmp_path / "other.h5"
    with write(path, recipe.model_copy(update={"constituents": of}), []) as writer:
        writer.append(jets)
    with pytest.raises(DataError, match=r"other\.h5: subjets need pt, deta, dphi .* found dz_err"):
        JetStream([path], batch_size=2, subjet_radius=0.1)
