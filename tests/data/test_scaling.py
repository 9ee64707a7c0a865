from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import QuantileTransformer

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.quantiles import LIMIT, QuantileScaler
from jetssl_cli.data.recipe import load_recipe, schema_of
from jetssl_cli.data.scaling import Scaling, fit_scaling
from jetssl_cli.data.stream import to_batch

SCHEMA = schema_of(load_recipe("jetclass"))
NAMES = [feature.name for feature in SCHEMA.constituents]
CHARGED = [feature.charged_only for feature in SCHEMA.constituents]

COLUMNS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n) * 10 ** rng.uniform(-3, 3, n),
    "few values": lambda rng, n: rng.integers(0, 5, n),
    "one in ten": lambda rng, n: np.where(rng.uniform(size=n) < 0.9, 0, rng.normal(size=n)),
    "clipped": lambda rng, n: np.clip(rng.normal(size=n), -0.8, 0.8),
    "counts": lambda rng, n: rng.poisson(40, n),
    "tiny": lambda rng, n: rng.exponential(1e-5, n),
    "huge": lambda rng, n: 1e6 + rng.normal(size=n),
}


def jets_of(features: np.ndarray, ids: np.ndarray, jets: np.ndarray | None = None) -> JetArrays:
    """One constituent in each jet."""
    count = len(features)
    return JetArrays(
        features.astype(np.float32),
        ids.astype(np.uint8),
        np.zeros((count, 0), np.int32),
        np.ones(count, np.int64),
        (np.zeros((count, 5)) if jets is None else jets).astype(np.float32),
        np.zeros(count, np.int16),
    )


def fitted(column: np.ndarray) -> QuantileScaler:
    """The scaler of one column: the first of the constituents."""
    features = np.zeros((len(column), 7))
    features[:, 0] = column
    quantiles = fit_scaling(SCHEMA, [jets_of(features, np.ones(len(column)))]).constituents
    return QuantileScaler(quantiles.quantiles[:1])


def by_sklearn(column: np.ndarray) -> QuantileTransformer:
    wide = column.astype(np.float32).astype(np.float64)[:, None]
    return QuantileTransformer(n_quantiles=500, output_distribution="normal", subsample=None).fit(
        wide
    )


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("count", [500, 501, 20_000])
def test_the_scaling_is_that_of_sklearn(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    column = COLUMNS[kind](rng, count).astype(np.float32).astype(np.float64)
    transformer, scaler = by_sklearn(column), fitted(column)
    quantiles = transformer.quantiles_[:, 0]
    np.testing.assert_allclose(scaler.quantiles[0], quantiles, rtol=1e-12, atol=1e-12)
    between = np.concatenate([quantiles, (quantiles[1:] + quantiles[:-1]) / 2])
    span = quantiles[-1] - quantiles[0] + 1
    far = np.array([quantiles[0] - span, quantiles[-1] + span, -1e30, 1e30])
    values = np.concatenate([column, COLUMNS[kind](rng, 500), between, far])[:, None]
    values = values.astype(np.float32).astype(np.float64)  # features are float32
    found = scaler(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, transformer.transform(values), rtol=0, atol=1e-5)
    assert np.abs(found).max() <= 5.2
    assert found[-4:, 0].tolist() == [-LIMIT, LIMIT, -LIMIT, LIMIT]


@settings(max_examples=30)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    st.lists(st.floats(-2e3, 2e3, width=32), max_size=30),
)
@pytest.mark.filterwarnings("ignore:n_quantiles:UserWarning")
def test_a_scaler_equals_sklearn_on_any_knots(knots: list[float], values: list[float]) -> None:
    quantiles = np.sort(np.resize(np.array(knots), 500))
    transformer = by_sklearn(np.arange(500.0))
    transformer.quantiles_ = quantiles[:, None]
    scaler = QuantileScaler(torch.from_numpy(quantiles)[None])
    column = np.array([*values, *knots])[:, None]
    found = scaler(torch.from_numpy(column)).numpy()
    np.testing.assert_allclose(found, transformer.transform(column), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_inverse_undoes_forward(kind: str) -> None:
    column = np.sort(COLUMNS[kind](np.random.default_rng(1), 5000))
    scaler = fitted(column)
    inside = torch.linspace(-5, 5, 201, dtype=torch.float64)[:, None]
    torch.testing.assert_close(scaler(scaler.inverse(inside)), inside, rtol=0, atol=1e-3)
    values = torch.from_numpy(column[5:-5])[:, None]
    torch.testing.assert_close(scaler.inverse(scaler(values)), values, rtol=1e-6, atol=1e-9)


def test_inverse_returns_repeated_values_exactly() -> None:
    column = COLUMNS["few values"](np.random.default_rng(1), 5000).astype(float)
    values = torch.arange(5, dtype=torch.float32)[:, None]
    scaler = fitted(column)
    torch.testing.assert_close(scaler.inverse(scaler(values)), values)


def test_the_scaling_of_float32_keeps_its_type_and_is_monotone() -> None:
    scaler = fitted(COLUMNS["heavy tails"](np.random.default_rng(2), 5000))
    values = torch.linspace(-100, 100, 1001)[:, None]
    found = scaler(values)
    assert found.dtype == torch.float32
    assert (found.diff(dim=0) >= 0).all()
    assert scaler(values[:0]).shape == (0, 1)


def test_a_constant_column_is_finite_and_equals_sklearn() -> None:
    column = np.full(1000, 3.0)
    values = np.array([[2.0], [3.0], [4.0]])
    found = fitted(column)(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, by_sklearn(column).transform(values), atol=1e-5)


def random_jets(seed: int, count: int = 4000) -> JetArrays:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, count)
    features = rng.normal(size=(count, 7)) * 10 ** rng.uniform(-2, 2, 7)
    features[np.isin(ids, (0, 2))] *= np.where(CHARGED, 0, 1)
    return jets_of(features, ids, rng.normal(size=(count, 5)))


def test_neutral_particles_are_left_out_of_the_fit_and_scaled_to_zero() -> None:
    jets = random_jets(0)
    scaling = fit_scaling(SCHEMA, [jets])
    neutral = np.isin(jets.ids, (0, 2))
    scaled = scaling(to_batch(jets)).features.numpy()
    assert any(CHARGED)
    assert not all(CHARGED)
    for index, charged_only in enumerate(CHARGED):
        column = jets.features[:, index].astype(np.float64)
        transformer = by_sklearn(column[~neutral] if charged_only else column)
        expected = transformer.transform(column[:, None])[:, 0]
        if charged_only:
            expected[neutral] = 0
        np.testing.assert_allclose(scaled[:, index], expected, rtol=0, atol=1e-5)
        if not charged_only:
            assert (np.abs(scaled[neutral, index]) > 0.1).mean() > 0.8


def test_jet_features_are_scaled_and_the_rest_is_left_alone() -> None:
    jets = random_jets(1)
    batch = to_batch(jets)
    before = batch.features.clone()
    scaled = fit_scaling(SCHEMA, [jets])(batch)
    for index in range(5):
        column = jets.jets[:, index : index + 1]
        expected = by_sklearn(column[:, 0]).transform(column.astype(np.float64))
        np.testing.assert_allclose(scaled.jets[:, index : index + 1], expected, atol=1e-5)
    assert torch.equal(scaled.ids, batch.ids)
    assert torch.equal(scaled.labels, batch.labels)
    assert scaled.packing is batch.packing
    assert torch.equal(batch.features, before)


def test_the_fit_does_not_depend_on_the_chunks() -> None:
    jets = random_jets(2)
    parts = [jets.take(np.arange(start, start + 1000)) for start in range(0, 4000, 1000)]
    whole, pieces = fit_scaling(SCHEMA, [jets]), fit_scaling(SCHEMA, parts)
    assert torch.equal(whole.constituents.quantiles, pieces.constituents.quantiles)
    assert torch.equal(whole.jets.quantiles, pieces.jets.quantiles)


def test_jets_without_any_charged_particle_can_be_scaled() -> None:
    jets = random_jets(3)
    neutral = jets.take(np.flatnonzero(jets.ids == 0))
    scaled = fit_scaling(SCHEMA, [neutral])(to_batch(neutral)).features
    assert scaled.isfinite().all()
    assert not scaled[:, torch.tensor(CHARGED)].any()


def test_weights_carry_the_fit_into_an_unfitted_scaling() -> None:
    jets = random_jets(4)
    fit = fit_scaling(SCHEMA, [jets])
    copy = Scaling.unfitted(SCHEMA)
    copy.load_state_dict(fit.state_dict())
    assert torch.equal(copy(to_batch(jets)).features, fit(to_batch(jets)).features)
    assert set(fit.state_dict()) == {"constituents.quantiles", "jets.quantiles"}


def test_simulated_jets_lie_in_the_range_of_the_real_ones(shared_data: Path, jagged: Path) -> None:
    table = np.genfromtxt(shared_data / "jetclass_quantiles.csv", delimiter=",", names=True)
    with JaggedFile(jagged / "train.h5") as file:
        scaling = fit_scaling(file.schema, [file.read().first(64)])
    real, ours = table["pt"], scaling.constituents.quantiles[NAMES.index("pt")].numpy()
    middle = slice(50, 450)
    assert 0.7 < np.median(ours[middle] / real[middle]) < 1.4
    jet_pt = scaling.jets.quantiles[0].numpy()
    np.testing.assert_allclose(jet_pt[middle], table["jet_pt"][middle], rtol=0.15)
    for name in ("deta", "dphi"):
        found = scaling.constituents.quantiles[NAMES.index(name)].numpy()
        np.testing.assert_allclose(found[middle], table[name][middle], atol=0.1)


SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38]


@settings(max_examples=50)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.lists(st.floats(width=32), max_size=40),
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_the_fast_search_finds_what_the_plain_one_finds(
    quantiles: list[float], values: list[float]
) -> None:
    knots = np.sort(np.resize(np.array(quantiles), 500))
    scaler = QuantileScaler(torch.from_numpy(np.stack([knots, -knots[::-1]])))
    near = np.array([*quantiles, *values, *SPECIAL], np.float32)
    with np.errstate(invalid="ignore"):
        ends = [np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf)]
    column = torch.from_numpy(np.concatenate([near, *ends]))
    column = column[column.isfinite()]
    plain = (scaler.knots[0] <= column[:, None]).sum(1) - 1
    assert torch.equal(scaler.find_by_cells(0, column).long(), plain)
    columns = torch.stack([column, column.flip(0)])
    together = scaler.together(columns).t().float()
    torch.testing.assert_close(scaler(columns.t()), together, rtol=0, atol=0, equal_nan=True)


def test_what_is_no_number_stays_none() -> None:
    scaler = fitted(COLUMNS["normal"](np.random.default_rng(2), 5000))
    assert scaler(torch.tensor([[np.nan], [-np.nan]])).isnan().all()
