"""Tracks of a detector like CMS: helices, efficiency, resolution. Pure functions of arrays.

Momenta in GeV, lengths in mm, angles in rad. Numbers are those of the detector card of JetClass
(Delphes with the CMS card, arXiv:1307.6346 and arXiv:2202.03772), which follow the CMS tracking
paper, arXiv:1405.6569. ``pt`` and ``eta`` are those of the track.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jetssl_cli.physics import wrap

Per = Float[np.ndarray, " T"]
"""One number per particle."""
Which = Bool[np.ndarray, " T"]

FIELD = 3.8
"""Solenoid [T]; arXiv:1405.6569, section 2."""
RADIUS = 1290.0
"""Inner radius of the calorimeter [mm]; CMS card of Delphes."""
HALF_LENGTH = 3000.0
"""From the centre to the endcap [mm]; CMS card of Delphes."""
MAX_ETA = 2.5
"""Coverage of the tracker; arXiv:1405.6569, section 2."""
TURN_ON = 0.4
"""Scale [GeV] of the rise of the efficiency above ``LEAST_PT``; tuned, see ``efficiency``."""
BARREL = 1.5
"""Pseudorapidity where efficiencies change."""
IMPACT_ETA = np.array([0.9, 1.4])
IMPACT_PT = np.array([0.2, 0.45, 1.0, 2.2, 5.0, 11.0, 25.0, 55.0, 122.0])
"""Transverse momenta [GeV] of the numbers below."""
D0_RESOLUTION = np.array(
    [
        [0.354, 0.174, 0.0753, 0.0452, 0.0283, 0.0191, 0.0130, 0.0110, 0.0109],
        [0.456, 0.203, 0.0926, 0.0488, 0.0313, 0.0214, 0.0128, 0.0101, 0.0088],
        [0.697, 0.340, 0.1557, 0.0767, 0.0425, 0.0256, 0.0176, 0.0144, 0.0137],
    ]
)
"""Of the transverse impact parameter [mm] for |eta| up to 0.9, 1.4 and 2.5; figure 15 of
arXiv:1405.6569, as the detector card of JetClass has it."""
DZ_RESOLUTION = np.array(
    [
        [0.369, 0.222, 0.111, 0.0684, 0.0484, 0.0382, 0.0316, 0.0316, 0.0315],
        [0.706, 0.388, 0.198, 0.103, 0.0707, 0.0511, 0.0409, 0.0342, 0.0309],
        [2.172, 1.439, 0.670, 0.332, 0.182, 0.112, 0.0882, 0.0817, 0.0814],
    ]
)
"""The same of the longitudinal one [mm]."""
CURVATURE = 0.299792458 * FIELD / 1000
"""pT [GeV] of a unit charge = this times the radius of its helix [mm]."""
LEAST_PT = CURVATURE * RADIUS / 2
"""0.73 GeV: softer particles from the collision curl up before the calorimeter."""


class Perigee(NamedTuple):
    """A track where it is closest to the beam line, in the convention of Delphes."""

    d0: Per
    """(x py - y px) / pt [mm]: the point is (d0 sin phi, -d0 cos phi)."""
    dz: Per
    """z [mm]."""
    phi: Per
    """Azimuth of the momentum there."""


def perigee(px: Per, py: Per, pz: Per, charge: Per, x: Per, y: Per, z: Per) -> Perigee:
    """Follow the helix of a charged particle from its origin back to the beam line.

    A positive charge turns clockwise; the centre of its circle lies to the right of it.
    ``charge`` is not 0.
    """
    pt, sign = np.hypot(px, py), np.sign(charge)
    radius = pt / (CURVATURE * np.abs(charge))
    cx, cy = x + sign * radius * py / pt, y - sign * radius * px / pt
    distance = np.hypot(cx, cy)
    phi = np.arctan2(sign * cx, -sign * cy)
    turn = wrap(phi - np.arctan2(py, px))
    return Perigee(sign * (distance - radius), z - sign * radius * turn * pz / pt, phi)


def at_calorimeter(
    px: Per, py: Per, pz: Per, charge: Per, x: Per, y: Per, z: Per
) -> tuple[Per, Per, Which]:
    """Pseudorapidity and azimuth, seen from the centre, of where particles leave the tracker.

    Charged particles follow their helix, neutral ones a straight line, to the barrel at ``RADIUS``
    or the endcap at ``HALF_LENGTH``.

    Returns:
        eta, phi, and whether there is such a place: not for what begins outside.
    """
    inside = (np.hypot(x, y) < RADIUS) & (np.abs(z) < HALF_LENGTH) & (np.hypot(px, py) > 0)
    pt = np.where(inside, np.hypot(px, py), 1.0)
    ux, uy = px / pt, py / pt
    charged = charge != 0
    radius = np.where(charged, pt / (CURVATURE * np.where(charged, np.abs(charge), 1)), 1.0)
    to_barrel = np.where(
        charged,
        _along_circle(ux, uy, np.sign(charge), radius, x, y),
        _along_line(ux, uy, x, y),
    )
    slope = pz / pt
    with np.errstate(divide="ignore", invalid="ignore"):
        to_endcap = np.where(slope == 0, np.inf, (np.sign(pz) * HALF_LENGTH - z) / slope)
    length = np.where(inside, np.minimum(to_barrel, to_endcap), 0.0)
    turned = np.where(charged, np.sign(charge) * length / radius, 0.0)
    forward = np.where(charged, radius * np.sin(turned) * np.sign(charge), length)
    aside = np.where(charged, radius * (1 - np.cos(turned)) * np.sign(charge), 0.0)
    end_x, end_y = x + forward * ux + aside * uy, y + forward * uy - aside * ux
    rho = np.maximum(np.hypot(end_x, end_y), 1e-9)
    return np.arcsinh((z + length * slope) / rho), np.arctan2(end_y, end_x), inside


def efficiency(pt: Per, eta: Per, electron: Which, muon: Which) -> Per:
    """Probability that a charged particle gives a track.

    Hadrons 0.95 (barrel, |eta| < 1.5) and 0.85 (endcap), 0.70 and 0.60 below 1 GeV; electrons 0.95
    and 0.83, 0.99 and 0.90 above 100 GeV, 0.73 and 0.50 below 1 GeV; muons 0.99 and 0.98, 0.75 and
    0.70 below 1 GeV. None beyond |eta| = 2.5. CMS card of Delphes, after arXiv:1405.6569,
    section 6.1. All times 1 - exp(-(pt - ``LEAST_PT``) / ``TURN_ON``), and 0 below ``LEAST_PT``:
    this factor is no part of the card. It is tuned to the real JetClass, where hardly any
    constituent is softer than 0.8 GeV.
    """
    barrel, soft, hard = np.abs(eta) <= BARREL, pt <= 1, pt > 100
    hadrons = np.where(barrel, np.where(soft, 0.70, 0.95), np.where(soft, 0.60, 0.85))
    electrons = np.where(
        barrel,
        np.select([soft, hard], [0.73, 0.99], 0.95),
        np.select([soft, hard], [0.50, 0.90], 0.83),
    )
    muons = np.where(barrel, np.where(soft, 0.75, 0.99), np.where(soft, 0.70, 0.98))
    found = np.select([electron, muon], [electrons, muons], hadrons)
    rise = -np.expm1(-np.maximum(pt - LEAST_PT, 0.0) / TURN_ON)
    return np.where(np.abs(eta) <= MAX_ETA, found * rise, 0.0)


def momentum_resolution(pt: Per, eta: Per, electron: Which, muon: Which) -> Per:
    """Relative resolution of the transverse momentum of a track.

    sqrt(a^2 + (b pt)^2) for |eta| up to 0.5, 1.5 and beyond: hadrons a = 0.06, 0.10, 0.25 and
    b = 1.3e-3, 1.7e-3, 3.1e-3 / GeV; electrons a = 0.03, 0.05, 0.15 and the same b; muons
    a = 0.01, 0.015, 0.025 and b = 1.0e-4, 1.5e-4, 3.5e-4 / GeV. CMS card of Delphes, after
    arXiv:1405.6569, section 6.2 (constant terms several times those of the paper).
    """
    region = np.searchsorted([0.5, BARREL], np.abs(eta))
    constant = np.select(
        [electron, muon],
        [np.array([0.03, 0.05, 0.15])[region], np.array([0.01, 0.015, 0.025])[region]],
        np.array([0.06, 0.10, 0.25])[region],
    )
    linear = np.where(
        muon, np.array([1.0e-4, 1.5e-4, 3.5e-4])[region], np.array([1.3e-3, 1.7e-3, 3.1e-3])[region]
    )
    resolution: Per = np.hypot(constant, linear * pt)
    return resolution


def d0_resolution(pt: Per, eta: Per) -> Per:
    """Resolution of the transverse impact parameter [mm], ``D0_RESOLUTION`` interpolated."""
    return _interpolated(D0_RESOLUTION, pt, eta)


def dz_resolution(pt: Per, eta: Per) -> Per:
    """Resolution of the longitudinal impact parameter [mm], ``DZ_RESOLUTION`` interpolated."""
    return _interpolated(DZ_RESOLUTION, pt, eta)


def _interpolated(table: Float[np.ndarray, "R P"], pt: Per, eta: Per) -> Per:
    """Straight lines in the logarithms of pT and resolution; the last number beyond the last pT."""
    region = np.searchsorted(IMPACT_ETA, np.abs(eta))
    rows = [np.interp(np.log(pt), np.log(IMPACT_PT), np.log(row)) for row in table]
    resolution: Per = np.exp(np.choose(np.minimum(region, len(rows) - 1), rows))
    return resolution


def _along_line(ux: Per, uy: Per, x: Per, y: Per) -> Per:
    """Length in the transverse plane from (x, y) along (ux, uy) to ``RADIUS``."""
    along = x * ux + y * uy
    length: Per = np.sqrt(np.maximum(along**2 + RADIUS**2 - x**2 - y**2, 0)) - along
    return length


def _along_circle(ux: Per, uy: Per, sign: Per, radius: Per, x: Per, y: Per) -> Per:
    """Length of arc from (x, y) to the first crossing of ``RADIUS``; infinite for loopers."""
    cx, cy = x + sign * radius * uy, y - sign * radius * ux
    distance = np.maximum(np.hypot(cx, cy), 1e-9)
    cosine = (RADIUS**2 - distance**2 - radius**2) / (2 * radius * distance)
    start = np.arctan2(y - cy, x - cx) - np.arctan2(cy, cx)
    half = np.arccos(np.clip(cosine, -1, 1))
    turns = [np.mod(sign * (start - end), 2 * np.pi) for end in (half, -half)]
    return np.where(np.abs(cosine) > 1, np.inf, radius * np.minimum(*turns))
