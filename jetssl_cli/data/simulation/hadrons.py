"""Hadrons with a b or c quark that decay weakly, and the flavour they give to jets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jetssl_cli.data.simulation.clustering import Jets
from jetssl_cli.data.simulation.record import Record
from jetssl_cli.physics import is_b_hadron, is_c_hadron, pseudorapidity, wrap

LEAST_PT = 5.0
"""Transverse momentum [GeV] from which a hadron gives its flavour to a jet."""
WITHIN = 0.3
"""Largest dR from the axis of the jet."""
BOTTOM, CHARM, LIGHT = 5, 4, 0


@dataclass(frozen=True)
class Hadrons:
    """Weakly decaying b and c hadrons of several events."""

    event: Int[np.ndarray, " H"]
    pdg: Int[np.ndarray, " H"]
    pt: Float[np.ndarray, " H"]
    """[GeV]."""
    eta: Float[np.ndarray, " H"]
    phi: Float[np.ndarray, " H"]
    decay: Float[np.ndarray, "H 3"]
    """Where it decays [mm]: exactly the vertex of what comes from there."""


def heavy_hadrons(record: Record, vertices: Float[np.ndarray, "T 3"]) -> Hadrons:
    """The b and c hadrons that decay to no other hadron of their flavour."""
    weak = np.zeros(len(record.pdg), np.bool_)
    for flavoured in (is_b_hadron(record.pdg), is_c_hadron(record.pdg)):
        passed_on = np.zeros(len(weak), np.bool_)
        passed_on[record.mother[flavoured]] = True
        weak |= flavoured & ~passed_on & (record.status < 0)
    which = np.flatnonzero(weak)
    px, py, pz = (record.momenta[name][which] for name in ("px", "py", "pz"))
    return Hadrons(
        event=record.event[which],
        pdg=record.pdg[which],
        pt=np.hypot(px, py),
        eta=pseudorapidity(px, py, pz),
        phi=np.arctan2(py, px),
        decay=vertices[record.daughter[which]],
    )


def nearest_jet(hadrons: Hadrons, jets: Jets) -> Int[np.ndarray, " H"]:
    """The nearest jet of each hadron within dR < 0.3, or -1."""
    if not len(jets.event):
        return np.full(len(hadrons.event), -1)
    dphi = hadrons.phi[:, None] - jets.phi[None, :]
    dphi = wrap(dphi.ravel()).reshape(dphi.shape)
    distance = np.hypot(hadrons.eta[:, None] - jets.eta[None, :], dphi)
    distance[hadrons.event[:, None] != jets.event[None, :]] = np.inf
    return np.where(distance.min(axis=1) < WITHIN, distance.argmin(axis=1), -1)


def flavours(
    hadrons: Hadrons, holder: Int[np.ndarray, " H"], num_jets: int
) -> Int[np.ndarray, " J"]:
    """5 for jets that hold a b hadron of 5 GeV, else 4 where a c hadron of 5 GeV, else 0."""
    flavour = np.full(num_jets, LIGHT)
    counts = (holder >= 0) & (hadrons.pt > LEAST_PT)
    flavour[holder[counts & is_c_hadron(hadrons.pdg)]] = CHARM
    flavour[holder[counts & is_b_hadron(hadrons.pdg)]] = BOTTOM
    return flavour
