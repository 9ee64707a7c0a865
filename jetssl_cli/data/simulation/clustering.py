"""Jets by FastJet, of many events at once, and their soft-drop mass.

FastJet (arXiv:1111.6097; cite it where simulated jets are used) is an optional dependency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation.detector import Objects
from jetssl_cli.data.subjets import require_fastjet
from jetssl_cli.physics import pseudorapidity, transverse_momentum

SYMMETRY_CUT = 0.1
BETA = 0.0
"""Of the soft drop, arXiv:1402.2657, equation 1.1; the values of JetClass."""


@dataclass(frozen=True)
class Jets:
    """Jets of several events; momenta [GeV]. Their constituents lie end to end."""

    event: Int[np.ndarray, " J"]
    """Number of the event, ascending; in an event the jets are in descending pT."""
    px: Float[np.ndarray, " J"]
    py: Float[np.ndarray, " J"]
    pz: Float[np.ndarray, " J"]
    energy: Float[np.ndarray, " J"]
    sizes: Int[np.ndarray, " J"]
    """Constituents of each jet."""
    rows: Int[np.ndarray, " T"]
    """Which objects they are, in descending pT within each jet."""

    @property
    def pt(self) -> Float[np.ndarray, " J"]:
        """Transverse momentum [GeV]."""
        return transverse_momentum(self.px, self.py)

    @property
    def eta(self) -> Float[np.ndarray, " J"]:
        """Pseudorapidity."""
        return pseudorapidity(self.px, self.py, self.pz)

    @property
    def phi(self) -> Float[np.ndarray, " J"]:
        """Azimuth [rad]."""
        found: NDArray[Any] = np.arctan2(self.py, self.px)
        return found

    def take(self, keep: Int[np.ndarray, " K"]) -> Jets:
        """The jets at these places, in this order."""
        rows = ak.unflatten(self.rows, self.sizes)[keep]
        return Jets(
            event=self.event[keep],
            px=self.px[keep],
            py=self.py[keep],
            pz=self.pz[keep],
            energy=self.energy[keep],
            sizes=self.sizes[keep],
            rows=ak.flatten(rows).to_numpy().astype(np.int64),
        )


def cluster(objects: Objects, *, radius: float, pt_min: float) -> Jets:
    """Cluster each event by anti-kT (arXiv:0802.1189), E-scheme; jets from ``pt_min`` [GeV] on.

    Raises:
        ConfigError: FastJet is not installed.
    """
    fastjet = require_fastjet("simulating needs FastJet", "simulate")
    empty = np.zeros(0)
    if not len(objects.event):
        none = np.zeros(0, np.int64)
        return Jets(none, empty, empty, empty, empty, none, none)
    events, sizes = np.unique(objects.event, return_counts=True)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    sequence = fastjet.ClusterSequence(_momenta(objects, np.arange(sizes.sum()), sizes), definition)
    found = sequence.inclusive_jets(min_pt=pt_min)
    members = sequence.constituent_index(min_pt=pt_min)
    in_event = ak.num(found, axis=1).to_numpy()
    in_jet = ak.flatten(ak.num(members, axis=2)).to_numpy().astype(np.int64)
    place = np.repeat(np.arange(len(events)), in_event)
    rows = ak.flatten(members, axis=None).to_numpy().astype(np.int64)
    rows += np.repeat((np.cumsum(sizes) - sizes)[place], in_jet)
    pt = np.hypot(objects.px[rows], objects.py[rows])
    rows = rows[np.lexsort((-pt, np.repeat(np.arange(len(in_jet)), in_jet)))]
    flat = ak.flatten(found)
    jets = Jets(
        event=events[place],
        px=flat.px.to_numpy(),
        py=flat.py.to_numpy(),
        pz=flat.pz.to_numpy(),
        energy=flat.E.to_numpy(),
        sizes=in_jet,
        rows=rows,
    )
    return jets.take(np.lexsort((-jets.pt, jets.event)))


def soft_drop_mass(objects: Objects, jets: Jets, *, radius: float) -> Float[np.ndarray, " J"]:
    """Mass [GeV] of each jet after soft drop (arXiv:1402.2657, equation 1.1).

    The constituents are clustered anew by Cambridge/Aachen; z_cut = 0.1, beta = 0. A jet that
    loses all but one massless constituent has the mass 0.
    """
    if not len(jets.sizes):
        return np.zeros(0)
    fastjet = require_fastjet("simulating needs FastJet", "simulate")
    definition = fastjet.JetDefinition(fastjet.cambridge_algorithm, 2 * radius + 1)
    sequence = fastjet.ClusterSequence(_momenta(objects, jets.rows, jets.sizes), definition)
    groomed = sequence.exclusive_jets_softdrop_grooming(
        njets=1, beta=BETA, symmetry_cut=SYMMETRY_CUT, R0=radius
    )
    mass: NDArray[np.float64] = ak.to_numpy(groomed.msoftdrop).astype(np.float64).reshape(-1)
    return mass


def _momenta(objects: Objects, rows: NDArray[Any], sizes: NDArray[Any]) -> Any:
    columns = {"px": objects.px, "py": objects.py, "pz": objects.pz, "E": objects.energy}
    flat = ak.zip({name: column[rows] for name, column in columns.items()}, with_name="Momentum4D")
    return ak.unflatten(flat, sizes)
