"""Calorimeters of a detector like CMS: towers, resolution, and what is left beside tracks.

The energy flow of Delphes (arXiv:1307.6346, section 3.4; particle flow of CMS: arXiv:1706.04965):
what a tower measures beyond its tracks, if significant, becomes one neutral object. Numbers are
those of the detector card of JetClass (arXiv:2202.03772). Energies in GeV, angles in rad.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation.tracks import Per, Which

ECAL_STEP = 0.0174
"""Size of an ECAL crystal in pseudorapidity; arXiv:1706.04965, section 2.3."""
ECAL_EDGES = np.arange(171) * ECAL_STEP
HCAL_EDGES = np.concatenate(
    [np.arange(20) * 0.087, [1.74, 1.83, 1.93, 2.043, 2.172, 2.322, 2.5, 2.65, 2.868, 2.95]]
)
"""Edges in |eta| of the towers; arXiv:1706.04965, section 2.4. Towers are 5 degrees wide in azimuth
up to 1.653, and 10 degrees beyond."""


def ecal_resolution(energy: Per, eta: Per) -> Per:
    """Resolution [GeV] of the electromagnetic energy in a tower.

    sqrt((0.008 E)^2 + 0.11^2 E + 0.40^2), times 1 + 0.64 eta^2 in the barrel (|eta| < 1.5) and
    2.16 + 5.6 (|eta| - 2)^2 in the endcap; sqrt((0.107 E)^2 + 2.08^2 E) beyond 2.5. CMS card of
    Delphes, after arXiv:1306.2016 and arXiv:1502.02701.
    """
    size = np.abs(eta)
    core = np.sqrt((0.008 * energy) ** 2 + 0.11**2 * energy + 0.40**2)
    forward = np.sqrt((0.107 * energy) ** 2 + 2.08**2 * energy)
    return np.select(
        [size <= 1.5, size <= 2.5],
        [(1 + 0.64 * eta**2) * core, (2.16 + 5.6 * (size - 2) ** 2) * core],
        forward,
    )


def hcal_resolution(energy: Per, eta: Per) -> Per:
    """Resolution [GeV] of the hadronic energy in a tower: sqrt((0.050 E)^2 + 1.50^2 E).

    CMS card of Delphes, for |eta| < 3.
    """
    del eta
    resolution: Per = np.sqrt((0.050 * energy) ** 2 + 1.50**2 * energy)
    return resolution


@dataclass(frozen=True)
class Calorimeter:
    """A grid of towers, and when a tower counts."""

    edges: Float[np.ndarray, " E"]
    """In |eta|, from 0."""
    divisions: Int[np.ndarray, " B"]
    """Towers around in azimuth, for each bin of |eta|."""
    resolution: Callable[[Per, Per], Per]
    """[GeV] of an energy [GeV] at a pseudorapidity."""
    threshold: float
    """Least energy of a tower, and of a neutral object [GeV]."""
    significance: float
    """Least energy in units of its resolution."""

    def towers(self, eta: Per, phi: Per) -> tuple[Int[np.ndarray, " T"], Which]:
        """The number of the tower at a place, and whether there is one."""
        band = np.searchsorted(self.edges, np.abs(eta), side="right") - 1
        covered = band < len(self.divisions)
        band = np.minimum(band, len(self.divisions) - 1)
        around = self.divisions[band]
        turn = np.floor((phi + np.pi) / (2 * np.pi) * around).astype(np.int64)
        side = (eta < 0).astype(np.int64)
        return (2 * band + side) * 1000 + np.clip(turn, 0, around - 1), covered

    def place(self, tower: Int[np.ndarray, " T"], along: Per, across: Per) -> tuple[Per, Per]:
        """Pseudorapidity and azimuth in a tower, 0 to 1 ``along`` eta and ``across`` in phi."""
        band, side, turn = tower // 2000, tower // 1000 % 2, tower % 1000
        low, high = self.edges[band], self.edges[band + 1]
        phi = (turn + across) / self.divisions[band] * 2 * np.pi - np.pi
        return np.where(side == 1, -1.0, 1.0) * (low + along * (high - low)), phi


ECAL = Calorimeter(
    edges=ECAL_EDGES,
    divisions=np.full(len(ECAL_EDGES) - 1, 360),
    resolution=ecal_resolution,
    threshold=0.5,
    significance=2.0,
)
"""Towers of 0.0174 x 1 degree, 0.5 GeV and 2 sigma; card of JetClass."""
HCAL = Calorimeter(
    edges=HCAL_EDGES,
    divisions=np.where(HCAL_EDGES[1:] < 1.66, 72, 36),
    resolution=hcal_resolution,
    threshold=1.0,
    significance=1.0,
)
"""Towers of 0.087 x 5 degrees in the barrel, 1 GeV and 1 sigma; card of JetClass."""


class Neutrals(NamedTuple):
    """What towers measure beyond their tracks."""

    event: Int[np.ndarray, " N"]
    energy: Float[np.ndarray, " N"]
    eta: Float[np.ndarray, " N"]
    phi: Float[np.ndarray, " N"]


def energy_flow(
    calorimeter: Calorimeter,
    deposits: tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"], Float[np.ndarray, " D"]],
    tracks: tuple[
        Int[np.ndarray, " K"],
        Int[np.ndarray, " K"],
        Float[np.ndarray, " K"],
        Float[np.ndarray, " K"],
    ],
    rng: np.random.Generator,
) -> tuple[Neutrals, Float[np.ndarray, " K"]]:
    """Measure towers, and compare them with the tracks that point to them.

    The energy of a tower is log-normal about the deposited one. If it exceeds that of the tracks by
    ``threshold`` and by ``significance`` combined resolutions, the excess is a neutral object,
    uniformly distributed over the tower. Otherwise its tracks are rescaled, so that their sum is
    the mean of tower and tracks, weighted by resolution. arXiv:1307.6346, section 3.4.

    Args:
        calorimeter: the towers.
        deposits: of each particle the event, the tower, the energy [GeV].
        tracks: of each track the event, the tower, the energy [GeV] and its resolution [GeV].
        rng: source of all randomness.

    Returns:
        The neutral objects, in the order of events and towers, and the factor for each track.
    """
    base = 2000 * len(calorimeter.divisions)
    keys = np.concatenate([deposits[0] * base + deposits[1], tracks[0] * base + tracks[1]])
    towers, index = np.unique(keys, return_inverse=True)
    of_deposit, of_track = index[: len(deposits[0])], index[len(deposits[0]) :]
    count = len(towers)
    draws = rng.random((3, count))
    event, tower = towers // base, towers % base
    half = np.full(count, 0.5)
    centre, _ = calorimeter.place(tower, half, half)
    deposited = _sums(of_deposit, deposits[2], count)
    energy = _log_normal(deposited, calorimeter.resolution(deposited, centre), rng)
    sigma = calorimeter.resolution(energy, centre)
    seen = (energy >= calorimeter.threshold) & (energy >= calorimeter.significance * sigma)
    energy = np.where(seen, energy, 0.0)

    charged = _sums(of_track, tracks[2], count)
    variance = _sums(of_track, tracks[3] ** 2, count)
    excess = np.maximum(energy - charged, 0.0)
    kept = (excess > calorimeter.threshold) & (
        excess > calorimeter.significance * np.sqrt(variance + sigma**2)
    )
    eta, phi = calorimeter.place(tower, draws[0], draws[1])
    neutrals = Neutrals(event[kept], excess[kept], eta[kept], phi[kept])
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = 1 / variance, np.where(sigma > 0, 1 / sigma**2, 0.0)
        best = (weights[0] * charged + weights[1] * energy) / (weights[0] + weights[1])
        factor = np.where(kept | (charged == 0), 1.0, best / charged)
    return neutrals, factor[of_track]


def _sums(
    index: NDArray[np.intp], values: Float[np.ndarray, " D"], count: int
) -> Float[np.ndarray, " N"]:
    return np.bincount(index, values, count).astype(np.float64)  # integers where there are none


def _log_normal(mean: Per, sigma: Per, rng: np.random.Generator) -> Per:
    """Log-normal numbers of this mean and standard deviation; 0 where the mean is 0."""
    some = np.where(mean > 0, mean, 1.0)
    width = np.sqrt(np.log1p((sigma / some) ** 2))
    return np.where(
        mean > 0, np.exp(np.log(some) - width**2 / 2 + width * rng.normal(size=len(mean))), 0.0
    )
