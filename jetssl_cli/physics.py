"""Kinematics and conventions as pure functions of arrays, one number per particle.

Units: momenta in GeV, lengths in mm, angles in rad. ``FORMULAS`` lists what a data recipe may name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped, UInt8
from numpy.typing import NDArray

Per = Shaped[np.ndarray, " T"]
"""One number per particle."""
Listed = Shaped[np.ndarray, "T M"]
"""Per particle, M numbers of a list of its jet, such as its hadrons; NaN where there are fewer."""
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
    squared: Per = px * px + py * py  # several times faster than hypot, and nothing overflows
    pt: Per = np.sqrt(squared)
    return pt


def pseudorapidity(px: Per, py: Per, pz: Per) -> Per:
    """Pseudorapidity from the momentum components [GeV]; infinite along the beam."""
    with np.errstate(divide="ignore", invalid="ignore"):
        eta: Per = np.arcsinh(pz / transverse_momentum(px, py))
    return eta


def wrap(angle: Per) -> Per:
    """The same angle [rad] in (-pi, pi]."""
    wrapped = angle - 2 * np.pi * np.ceil((angle - np.pi) / (2 * np.pi))
    return np.minimum(wrapped, np.pi)  # just above -pi, rounding reaches the float after pi


def delta_eta(px: Per, py: Per, pz: Per, jet_eta: Per) -> Per:
    """Pseudorapidity of a particle [GeV] minus that of its jet.

    JetClass stores ``part_deta`` multiplied by sign(jet_eta); from the momenta no such convention
    has to be undone.
    """
    return eta_difference(pseudorapidity(px, py, pz), jet_eta)


def delta_phi(px: Per, py: Per, jet_phi: Per) -> Per:
    """Azimuth of a particle [GeV] minus that of its jet, in (-pi, pi]."""
    return wrap(np.arctan2(py, px) - jet_phi)


def eta_difference(eta: Per, jet_eta: Per) -> Per:
    """Pseudorapidity of a particle minus that of its jet."""
    difference: Per = eta - jet_eta
    return difference


def phi_difference(phi: Per, jet_phi: Per) -> Per:
    """Azimuth [rad] of a particle minus that of its jet, in (-pi, pi]."""
    return wrap(phi - jet_phi)


def signed_d0(d0: Per, dz: Per, px: Per, py: Per, pz: Per, jet_eta: Per, jet_phi: Per) -> Per:
    """Transverse impact parameter [mm] with the lifetime sign.

    With b the vector from the primary vertex to the point of closest approach, whose components
    are (d0 cos(phi - pi/2), d0 sin(phi - pi/2), dz), the sign is that of
    (jet x track) . (track x -b): positive where the track crosses the jet axis downstream, as
    after a decay in flight. ATL-PHYS-PUB-2020-014, section 3. A vanishing product counts as
    positive, so that no value is lost. Only the direction of the momentum matters.
    """
    # (a x b) . (c x d) = (a . c)(b . d) - (a . d)(b . c); multiplied by pt, with b . track = pz dz
    # and b = (d0 py / pt, -d0 px / pt, dz)
    jx, jy = _once_per_jet(np.cos, jet_phi), _once_per_jet(np.sin, jet_phi)
    jz = np.sinh(jet_eta)
    pt2 = px * px + py * py
    across = d0 * (jx * py - jy * px) * (pt2 + pz * pz)
    along = dz * np.sqrt(pt2) * (jz * pt2 - pz * (jx * px + jy * py))
    return _with_sign(d0, across + along)


def signed_dz(dz: Per, px: Per, py: Per, pz: Per, jet_eta: Per) -> Per:
    """Longitudinal impact parameter [mm] with the lifetime sign.

    The sign is that of dz * (jet_eta - track_eta); ATL-PHYS-PUB-2020-014, section 3. The sine
    hyperbolicus, which is pz / pt, grows with the pseudorapidity, so that its sign is the same.
    """
    return _with_sign(dz, dz * (np.sinh(jet_eta) * transverse_momentum(px, py) - pz))


def signed_d0_of_track(d0: Per, dz: Per, eta: Per, phi: Per, jet_eta: Per, jet_phi: Per) -> Per:
    """Lifetime-signed d0 [mm] of a track given by its perigee parameters, angles in rad.

    As ``signed_d0``, but for the convention of perigee parameters, in which the point of closest
    approach is (-d0 sin(phi), d0 cos(phi), dz): the opposite sign of that of Delphes. With it the
    tracks of b jets have the positive tail that decays in flight give; with the other, a negative.
    """
    return signed_d0(-d0, dz, np.cos(phi), np.sin(phi), np.sinh(eta), jet_eta, jet_phi)


def signed_dz_of_track(dz: Per, eta: Per, jet_eta: Per) -> Per:
    """``signed_dz`` [mm] for a track given by its pseudorapidity."""
    return _with_sign(dz, dz * (jet_eta - eta))


def massless_mass(
    pt: Per, deta: Per, dphi: Per, sizes: Int[np.ndarray, " J"]
) -> Float64[np.ndarray, " J"]:
    """Mass [GeV] of the sum of the constituents of each jet, each of them massless.

    From transverse momenta [GeV] and directions relative to any one axis per jet (dphi in rad): the
    mass is the same seen from another azimuth, or boosted along the beam.

    Args:
        pt: transverse momenta.
        deta: pseudorapidities less that of the axis.
        dphi: azimuths less that of the axis.
        sizes: constituents of each jet, which lie end to end.
    """
    pt, deta, dphi = (np.asarray(values, np.float64) for values in (pt, deta, dphi))
    momenta = pt * np.stack([np.cosh(deta), np.cos(dphi), np.sin(dphi), np.sinh(deta)])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    energy, px, py, pz = (np.bincount(owner, row, minlength=len(sizes)) for row in momenta)
    squared = np.asarray(energy**2 - px**2 - py**2 - pz**2, np.float64)  # also of no constituents
    return np.sqrt(np.maximum(squared, 0))


def particle_class(
    charge: Per,
    photon: Per,
    charged_hadron: Per,
    neutral_hadron: Per,
    electron: Per,
    muon: Per,
) -> UInt8[np.ndarray, " T"]:
    """Index into ``PARTICLE_CLASSES`` from the charge and five flags, else ``NO_CLASS``.

    Exactly one flag must be set, and the charge must fit it: zero for photons and neutral hadrons,
    not zero for the others.
    """
    kind = np.zeros(len(charge), np.uint8)
    flags = (photon, charged_hadron, neutral_hadron, electron, muon)
    for bit, flag in enumerate(flags):
        kind |= (flag != 0).view(np.uint8) << np.uint8(bit)
    return _CLASS_OF[kind, _sign_of(charge)]


def particle_class_of_pdg(pdg_id: Per, charge: Per) -> UInt8[np.ndarray, " T"]:
    """Index into ``PARTICLE_CLASSES`` from the PDG number and the charge, else ``NO_CLASS``.

    11 is an electron, 13 a muon, 22 a photon, anything above 100 a hadron; a charge that does not
    fit leaves no class.
    """
    number = np.abs(pdg_id)
    flags = [number == 22, number > 100, number > 100, number == 11, number == 13]
    charged = charge != 0
    flags[1] = flags[1] & charged
    flags[2] = flags[2] & ~charged
    return particle_class(charge, *flags)


def track_origin(prod_z: Per, hadron_z: Listed, hadron_pdgid: Listed) -> Per:
    """Where a track comes from: 0 primary vertex, 1 c hadron, 2 b hadron, 3 anything else.

    Primary where |prod_z| < 1e-6 [mm]; from a hadron where prod_z equals the place where one of
    the jet's hadrons decayed to 1e-6 [mm]. Where a b and a c hadron decay at one place, b.
    """
    here = np.abs(prod_z[:, None] - hadron_z) < 1e-6
    from_b = (here & is_b_hadron(hadron_pdgid)).any(axis=1)
    from_c = (here & is_c_hadron(hadron_pdgid)).any(axis=1)
    return np.select([np.abs(prod_z) < 1e-6, from_b, from_c], [0.0, 2.0, 1.0], 3.0)


def is_b_hadron(pdg_id: Shaped[np.ndarray, "*S"]) -> Bool[np.ndarray, "*S"]:
    """Whether the PDG number is that of a b hadron: 511 to 545 and 5121 to 5554, of any sign."""
    number = np.abs(pdg_id)
    found: NDArray[np.bool_] = (number >= 511) & (number <= 545)
    found |= (number >= 5121) & (number <= 5554)
    return found


def is_c_hadron(pdg_id: Shaped[np.ndarray, "*S"]) -> Bool[np.ndarray, "*S"]:
    """Whether the PDG number is that of a c hadron: 411 to 435 and 4121 to 4444, of any sign."""
    number = np.abs(pdg_id)
    found: NDArray[np.bool_] = (number >= 411) & (number <= 435)
    found |= (number >= 4121) & (number <= 4444)
    return found


def _sign_of(charge: Per) -> NDArray[np.uint8]:
    """0 where negative, 1 where zero, 2 where positive."""
    return (charge >= 0).view(np.uint8) + (charge > 0).view(np.uint8)


def _class_table() -> UInt8[np.ndarray, "32 3"]:
    """Class by (bits of the five flags, sign of the charge)."""
    table = np.full((32, 3), NO_CLASS, np.uint8)
    table[1, 1], table[4, 1] = 0, 2  # photon, neutral hadron
    table[2, 0], table[2, 2] = 1, 3  # charged hadrons
    table[8, 0], table[8, 2] = 4, 5  # electrons
    table[16, 0], table[16, 2] = 6, 7  # muons
    return table


_CLASS_OF = _class_table()


def _with_sign(length: Per, sign: Per) -> Per:
    signed: Per = np.copysign(length, sign + 0.0)  # -0.0 + 0.0 is 0.0: no sign counts as positive
    return signed


def _once_per_jet(function: Callable[[Per], Per], values: Per) -> Per:
    """A slow function of values that are the same for all particles of a jet, one after another."""
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))[: len(values)]
    return np.repeat(function(values[first]), np.diff(np.append(first, len(values))))


@cache
def takes_list(formula: str, parameter: str) -> bool:
    """Whether a parameter of a formula is a list of the jet rather than a number per particle."""
    return bool(inspect.signature(FORMULAS[formula]).parameters[parameter].annotation == "Listed")


FORMULAS: dict[str, Callable[..., NDArray[Any]]] = {
    function.__name__: function
    for function in (
        transverse_momentum,
        pseudorapidity,
        delta_eta,
        delta_phi,
        eta_difference,
        phi_difference,
        signed_d0,
        signed_dz,
        signed_d0_of_track,
        signed_dz_of_track,
        particle_class,
        particle_class_of_pdg,
        track_origin,
    )
}
"""What a recipe may name in ``formula``; its ``inputs`` are the function's parameters."""
