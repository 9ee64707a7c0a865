from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jetssl_cli.data import scaling as module
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.quantiles import quantiles
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import fit_scaling, fitted_scaling
from jetssl_cli.data.write import write


@given(
    arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, 0.8]),
    )
)
def test_quantiles_are_those_of_numpy_bit_for_bit(column: np.ndarray) -> None:
    percents = np.linspace(0, 1, module.NUM_QUANTILES) * 100
    plain = np.maximum.accumulate(np.percentile(column.astype(np.float64), percents))
    np.testing.assert_array_equal(quantiles(np.sort(column)), plain)


def test_quantiles_of_a_long_column_are_those_of_numpy() -> None:
    column = np.random.default_rng(0).exponential(10, 12_345).astype(np.float32)
    percents = np.linspace(0, 1, module.NUM_QUANTILES) * 100
    plain = np.maximum.accumulate(np.percentile(column.astype(np.float64), percents))
    np.testing.assert_array_equal(quantiles(np.sort(column)), plain)


@pytest.fixture
def data(tmp_path: Path, jagged: Path) -> list[Path]:
    """Two files of their own folder."""
    files = []
    for name in ("train", "val"):
        files.append(tmp_path / f"{name}.h5")
        files[-1].write_bytes((jagged / f"{name}.h5").read_bytes())
    return files


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.safetensors"))


def state(sample: Sample) -> dict[str, torch.Tensor]:
    return fitted_scaling(sample).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each fit that is made."""
    made: list[int] = []
    fit = module.fit_scaling

    def spy(*args: object, **more: object) -> object:
        made.append(1)
        return fit(*args, **more)

    monkeypatch.setattr(module, "fit_scaling", spy)
    return made


def test_a_scaling_is_fitted_once_and_is_that_of_all_jets(
    data: list[Path], tmp_path: Path, fits: list[int]
) -> None:
    first = state(Sample(data, max_constituents=64))
    again = state(Sample(data, max_constituents=64))
    assert len(fits) == 1
    assert same(first, again)
    jets = []
    for path in data:
        with JaggedFile(path) as file:
            jets.append(file.read().first(64))
            schema = file.schema
    assert same(first, fit_scaling(schema, jets).state_dict())
    (cache,) = caches(tmp_path)
    assert cache.name.startswith(".train.scaling-")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in [*data, cache]:
        path.rename(moved / path.name)
    assert same(first, state(Sample([moved / path.name for path in data], max_constituents=64)))
    assert len(fits) == 1


def test_what_was_fitted_on_other_jets_is_not_used(data: list[Path], fits: list[int]) -> None:
    samples = [
        Sample(data[:1]),
        Sample(data[:1], num_jets=500),
        Sample(data[:1], max_constituents=20),
        Sample(data),
        Sample(data[::-1]),
    ]
    states = [state(sample) for sample in samples]
    assert len(fits) == len(samples)
    assert not any(same(states[0], other) for other in states[1:4])
    with JaggedFile(data[0]) as file:
        jets, recipe = file.read(), file.recipe
    jets.features[jets.offsets[0]] *= 2  # the jet features stay the same
    with write(data[0], recipe, []) as writer:
        writer.append(jets)
    assert not same(state(Sample(data[:1])), states[0])
    assert len(fits) == len(samples) + 1
