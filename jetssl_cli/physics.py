"""Kinematics and conventions as pure functions of arrays, one number per particle.

Units: momenta in GeV, lengths in mm, angles in rad. ``FORMULAS`` lists what a data recipe may name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

Per = Float[NDArray[Any], " T"]
"""One float64 number per particle."""
PARTICLE_CLASSES = (
    "photon",
    "hadron-",
    "neutral hadron",
    "hadron+",
    "electron-",
    "electron+",
    "muon-",
    "muon+",
)
NEUTRAL_CLASSES = (0, 2)
"""Classes without a track: they have no impact parameter."""
NO_CLASS = 255
"""What ``particle_class`` answers for a particle that fits no class, or several."""


def transverse_momentum(px: Per, py: Per) -> Per:
    """Transverse momentum [GeV] from the momentum components [GeV]."""
    return np.hypot(px, py)


def pseudorapidity(px: Per, py: Per, pz: Per) -> Per:
    """Pseudorapidity from the momentum components [GeV]; infinite along the beam."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.arcsinh(pz / np.hypot(px, py))


def wrap(angle: Per) -> Per:
    """The same angle [rad] in (-pi, pi]."""
    wrapped = angle - 2 * np.pi * np.ceil((angle - np.pi) / (2 * np.pi))
    return np.minimum(wrapped, np.pi)  # just above -pi, rounding reaches the float after pi


def delta_eta(px: Per, py: Per, pz: Per, jet_eta: Per) -> Per:
    """Pseudorapidity of a particle [GeV] minus that of its jet.

    JetClass stores ``part_deta`` multiplied by sign(jet_eta); from the momenta no such convention
    has to be undone.
    """
    return pseudorapidity(px, py, pz) - jet_eta


def delta_phi(px: Per, py: Per, jet_phi: Per) -> Per:
    """Azimuth of a particle [GeV] minus that of its jet, in (-pi, pi]."""
    return wrap(np.arctan2(py, px) - jet_phi)


def signed_d0(d0: Per, dz: Per, px: Per, py: Per, pz: Per, jet_eta: Per, jet_phi: Per) -> Per:
    """Transverse impact parameter [mm] with the lifetime sign.

    With b the vector from the primary vertex to the point of closest approach, whose components
    are (d0 cos(phi - pi/2), d0 sin(phi - pi/2), dz), the sign is that of
    (jet x track) . (track x -b): positive where the track crosses the jet axis downstream, as
    after a decay in flight. ATL-PHYS-PUB-2020-014, section 3. A vanishing product counts as
    positive, so that no value is lost.
    """
    pt = np.hypot(px, py)
    phi = np.arctan2(py, px)
    bx, by = d0 * np.sin(phi), -d0 * np.cos(phi)  # cos(phi - pi/2), sin(phi - pi/2)
    jx, jy, jz = np.cos(jet_phi), np.sin(jet_phi), np.sinh(jet_eta)
    # (a x b) . (c x d) = (a . c)(b . d) - (a . d)(b . c), and b is transverse to the track
    jet_track = jx * px + jy * py + jz * pz
    jet_b = jx * bx + jy * by + jz * dz
    return _with_sign(d0, jet_b * (pt**2 + pz**2) - jet_track * pz * dz)


def signed_dz(dz: Per, px: Per, py: Per, pz: Per, jet_eta: Per) -> Per:
    """Longitudinal impact parameter [mm] with the lifetime sign.

    The sign is that of dz * (jet_eta - track_eta); ATL-PHYS-PUB-2020-014, section 3.
    """
    return _with_sign(dz, dz * (jet_eta - pseudorapidity(px, py, pz)))


def particle_class(
    charge: Per,
    photon: Per,
    charged_hadron: Per,
    neutral_hadron: Per,
    electron: Per,
    muon: Per,
) -> UInt8[NDArray[Any], " T"]:
    """Index into ``PARTICLE_CLASSES`` from the charge and five flags, else ``NO_CLASS``.

    Exactly one flag must be set, and the charge must fit it: zero for photons and neutral hadrons,
    not zero for the others.
    """
    flags = np.stack([photon, charged_hadron, neutral_hadron, electron, muon]) != 0  # (5, T)
    negative, positive = charge < 0, charge > 0
    neutral = charge == 0
    allowed = [
        (flags[0] & neutral, 0),
        (flags[1] & negative, 1),
        (flags[2] & neutral, 2),
        (flags[1] & positive, 3),
        (flags[3] & negative, 4),
        (flags[3] & positive, 5),
        (flags[4] & negative, 6),
        (flags[4] & positive, 7),
    ]
    ids = np.select([fits for fits, _ in allowed], [value for _, value in allowed], NO_CLASS)
    return np.where(flags.sum(axis=0) == 1, ids, NO_CLASS).astype(np.uint8)


def _with_sign(length: Per, sign: Per) -> Per:
    return np.where(sign < 0, -1.0, 1.0) * np.abs(length)


FORMULAS: dict[str, Callable[..., NDArray[Any]]] = {
    function.__name__: function
    for function in (
        transverse_momentum,
        pseudorapidity,
        delta_eta,
        delta_phi,
        signed_d0,
        signed_dz,
        particle_class,
    )
}
"""What a recipe may name in ``formula``; its ``inputs`` are the function's parameters."""
