"""How far generated jets are from true ones: one-dimensional Wasserstein distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.config import Strict
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.schema import Schema
from jetssl_cli.physics import massless_mass

KINEMATICS = ("pt", "deta", "dphi")
"""Columns that the mass of a jet is computed from."""


class Distance(Strict):
    """Generated and true values of one quantity, in its unit."""

    name: str
    unit: str
    distance: float | None
    """Wasserstein distance of the two; None where one of them has no values."""
    floor: float | None
    """The same between the jets of even and of odd number of the truth: what chance alone makes.

    They are half as many, so that a perfect generator is below it.
    """
    spread: float | None
    """Standard deviation of the truth."""


@dataclass(frozen=True)
class Sampled:
    """Values of a quantity, and the number of the jet that each belongs to."""

    values: Float[np.ndarray, " N"]
    jets: Int[np.ndarray, " N"]


def compare(made: JetArrays, true: JetArrays, *, schema: Schema) -> list[Distance]:
    """Compare each feature of the constituents.

    Args:
        made: jets with the generated constituents alone.
        true: the same jets, with the constituents that those stand for.
        schema: of both.
    """
    columns = zip(schema.constituents, _columns(made, schema), _columns(true, schema), strict=True)
    return [distance(column.name, column.unit, *of_both) for column, *of_both in columns]


def compare_jets(made: JetArrays, true: JetArrays, *, schema: Schema) -> list[Distance]:
    """Compare whole jets: their number of constituents, and their mass if its columns are there.

    The mass is that of the sum of the constituents, each taken as massless.
    """
    numbers = (_per_jet(jets.sizes) for jets in (made, true))
    found = [distance("constituents of a jet", "1", *numbers)]
    names = [column.name for column in schema.constituents]
    if set(KINEMATICS) <= set(names):
        columns = [names.index(name) for name in KINEMATICS]
        masses = (_per_jet(_mass(jets, columns)) for jets in (made, true))
        found.append(distance("mass of a jet", "GeV", *masses))
    return found


def distance(name: str, unit: str, made: Sampled, true: Sampled) -> Distance:
    """All numbers of one quantity."""
    even = true.jets % 2 == 0
    return Distance(
        name=name,
        unit=unit,
        distance=wasserstein(made.values, true.values),
        floor=wasserstein(true.values[even], true.values[~even]),
        spread=float(true.values.std()) if len(true.values) else None,
    )


def wasserstein(one: Float[np.ndarray, " N"], two: Float[np.ndarray, " M"]) -> float | None:
    """The integral of the absolute difference of the cumulative distributions; None of nothing."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(one, two)) if len(one) and len(two) else None


def _columns(jets: JetArrays, schema: Schema) -> Iterator[Sampled]:
    """Each feature, of the constituents that have it."""
    numbers = np.repeat(np.arange(len(jets)), jets.sizes)
    for values, missing in zip(jets.features.T, schema.missing(jets.ids).T, strict=True):
        yield Sampled(values[~missing].astype(np.float64), numbers[~missing])


def _mass(jets: JetArrays, columns: list[int]) -> NDArray[np.float64]:
    pt, deta, dphi = jets.features[:, columns].T
    return massless_mass(pt, deta, dphi, jets.sizes)


def _per_jet(values: NDArray[np.generic]) -> Sampled:
    return Sampled(values.astype(np.float64), np.arange(len(values)))
