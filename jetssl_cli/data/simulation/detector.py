"""From stable particles to the particle-flow objects of a detector like CMS.

The chain of the detector card of JetClass (Delphes, arXiv:1307.6346): tracks with efficiency and
resolution, ECAL towers, HCAL towers, each compared with the tracks that point to it. Not simulated:
pile-up, conversions, nuclear interactions, bremsstrahlung, punch-through, misreconstructed tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation import tracks
from jetssl_cli.data.simulation.calorimeter import ECAL, HCAL, Calorimeter, Neutrals, energy_flow
from jetssl_cli.data.simulation.events import Particles

CHARGED_HADRON, NEUTRAL_HADRON, PHOTON, ELECTRON, MUON = range(5)


@dataclass(frozen=True)
class Objects:
    """Particle-flow objects of several events end to end; momenta [GeV], lengths [mm].

    Neutral objects have no impact parameter: all four numbers are 0.
    """

    event: Int[np.ndarray, " T"]
    """Number of the event, ascending."""
    kind: Int[np.ndarray, " T"]
    """``CHARGED_HADRON`` to ``MUON``."""
    charge: Float[np.ndarray, " T"]
    px: Float[np.ndarray, " T"]
    py: Float[np.ndarray, " T"]
    pz: Float[np.ndarray, " T"]
    energy: Float[np.ndarray, " T"]
    d0: Float[np.ndarray, " T"]
    """Transverse impact parameter in the convention of Delphes, (x py - y px) / pt."""
    d0_err: Float[np.ndarray, " T"]
    dz: Float[np.ndarray, " T"]
    dz_err: Float[np.ndarray, " T"]
    particle: Int[np.ndarray, " T"]
    """Which particle left the track; -1 for neutral objects."""


@dataclass(frozen=True)
class _Tracks:
    """Tracks that were found, and the index of their particle."""

    particle: NDArray[np.intp]
    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    mass: NDArray[np.float64]
    resolution: NDArray[np.float64]
    """Relative, of the momentum."""
    d0: NDArray[np.float64]
    d0_err: NDArray[np.float64]
    dz: NDArray[np.float64]
    dz_err: NDArray[np.float64]

    @property
    def energy(self) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.hypot(self.pt * np.cosh(self.eta), self.mass)
        return found


def reconstruct(particles: Particles, rng: np.random.Generator) -> Objects:
    """Measure particles: the objects of each event stand in the order it had them, neutrals last.

    Particles that begin outside of the tracker, or point beyond the calorimeters (|eta| > 2.95),
    are lost. Electrons and photons leave all their energy in the ECAL, muons none anywhere, all
    others in the HCAL (CMS card of Delphes).
    """
    eta, phi, inside = tracks.at_calorimeter(
        particles.px, particles.py, particles.pz, particles.charge,
        particles.x, particles.y, particles.z,
    )  # fmt: skip
    found = track(particles, inside, rng)
    number = np.abs(particles.pdg)
    light = np.isin(number, (11, 22))
    ecal = np.where(light, 1.0, 0.0)
    hcal = np.where(light | (number == 13), 0.0, 1.0)
    photons, scale_ecal = _flow(ECAL, particles, found, (eta, phi, inside), ecal, rng)
    hadrons, scale_hcal = _flow(HCAL, particles, found, (eta, phi, inside), hcal, rng)
    parts = [
        _charged(particles, found, scale_ecal * scale_hcal),
        _neutral(photons, PHOTON),
        _neutral(hadrons, NEUTRAL_HADRON),
    ]
    names = Objects.__dataclass_fields__
    columns = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
    order = np.argsort(columns["event"], kind="stable")
    return Objects(**{name: column[order] for name, column in columns.items()})


def track(
    particles: Particles, inside: Bool[np.ndarray, " T"], rng: np.random.Generator
) -> _Tracks:
    """Find tracks of charged particles, and smear momentum (log-normal) and impact parameters."""
    pt, number = np.hypot(particles.px, particles.py), np.abs(particles.pdg)
    eta = np.arcsinh(particles.pz / np.maximum(pt, 1e-9))
    chance = tracks.efficiency(pt, eta, number == 11, number == 13)
    hit = rng.random(len(pt)) < chance
    which = np.flatnonzero(inside & (particles.charge != 0) & hit)
    x, y, z, px, py, pz, charge = (
        getattr(particles, name)[which] for name in ("x", "y", "z", "px", "py", "pz", "charge")
    )
    true = tracks.perigee(px, py, pz, charge, x, y, z)
    pt, eta, number = pt[which], eta[which], number[which]
    relative = tracks.momentum_resolution(pt, eta, number == 11, number == 13)
    width = np.sqrt(np.log1p(relative**2))
    draws = rng.normal(size=(3, len(which)))
    measured = pt * np.exp(width * draws[0] - width**2 / 2)
    d0_err, dz_err = tracks.d0_resolution(measured, eta), tracks.dz_resolution(measured, eta)
    squared = particles.energy[which] ** 2 - pt**2 - pz**2
    return _Tracks(
        which, measured, eta, true.phi, np.sqrt(np.maximum(squared, 0.0)), relative,
        true.d0 + d0_err * draws[1], d0_err, true.dz + dz_err * draws[2], dz_err,
    )  # fmt: skip


def _flow(
    calorimeter: Calorimeter,
    particles: Particles,
    found: _Tracks,
    place: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]],
    fraction: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[Neutrals, NDArray[np.float64]]:
    """Energy flow of one calorimeter; a factor for every track, 1 for those that do not shower."""
    eta, phi, inside = place
    tower, covered = calorimeter.towers(eta, phi)
    hits = np.flatnonzero(inside & covered & (fraction > 0))
    showers = np.flatnonzero((fraction * covered)[found.particle] > 0)
    of_track = found.particle[showers]
    energy = found.energy[showers]
    neutrals, factor = energy_flow(
        calorimeter,
        (particles.event[hits], tower[hits], particles.energy[hits] * fraction[hits]),
        (particles.event[of_track], tower[of_track], energy, energy * found.resolution[showers]),
        rng,
    )
    scale = np.ones(len(found.particle))
    scale[showers] = factor
    return neutrals, scale


def _charged(particles: Particles, found: _Tracks, scale: NDArray[np.float64]) -> Objects:
    number = np.abs(particles.pdg[found.particle])
    pt = found.pt * scale
    pz = pt * np.sinh(found.eta)
    return Objects(
        event=particles.event[found.particle],
        kind=np.select([number == 11, number == 13], [ELECTRON, MUON], CHARGED_HADRON),
        charge=particles.charge[found.particle],
        px=pt * np.cos(found.phi),
        py=pt * np.sin(found.phi),
        pz=pz,
        energy=np.sqrt(pt**2 + pz**2 + found.mass**2),
        d0=found.d0,
        d0_err=found.d0_err,
        dz=found.dz,
        dz_err=found.dz_err,
        particle=found.particle,
    )


def _neutral(found: Neutrals, kind: int) -> Objects:
    pt = found.energy / np.cosh(found.eta)
    none = np.zeros(len(pt))
    return Objects(
        event=found.event,
        kind=np.full(len(pt), kind),
        charge=none,
        px=pt * np.cos(found.phi),
        py=pt * np.sin(found.phi),
        pz=pt * np.sinh(found.eta),
        energy=found.energy,
        d0=none,
        d0_err=none,
        dz=none,
        dz_err=none,
        particle=np.full(len(pt), -1),
    )
