"""The event record of Pythia, a batch at a time, as flat arrays; and where its particles begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation.processes import INVISIBLE

SAME_PLACE = 1e-3
"""Flights shorter than this [mm] do not make a vertex."""


@dataclass(frozen=True)
class Record:
    """All entries of several events end to end."""

    listed: Any
    """As it came from ``nextBatch``."""
    event: Int[np.ndarray, " T"]
    """Number of the event, ascending."""
    pdg: Int[np.ndarray, " T"]
    status: Int[np.ndarray, " T"]
    """Positive where the particle did not decay."""
    mother: Int[np.ndarray, " T"]
    """Place of the first mother; the first entry of the event where there is none."""
    daughter: Int[np.ndarray, " T"]
    """Place of the first daughter; the first entry of the event where there is none."""
    momenta: dict[str, NDArray[np.float64]]
    """px, py, pz and energy [GeV]."""

    @property
    def visible(self) -> NDArray[np.intp]:
        """Places of the particles that reach the detector; neutrinos do not count."""
        return np.flatnonzero((self.status > 0) & ~np.isin(np.abs(self.pdg), INVISIBLE))

    def origins(self, which: NDArray[np.intp]) -> list[NDArray[np.float64]]:
        """Where particles begin: x, y, z [mm]."""
        return origins(self.listed, which, self.event[which])

    def vertices(self) -> Float[np.ndarray, "T 3"]:
        """The vertex each particle comes from [mm]; exactly the same numbers for one vertex.

        A flight of less than ``SAME_PLACE`` makes no vertex: what a particle decays to then comes
        from where the particle came from, as with the D* and the neutral pion. What lies so close
        to the collision comes from it: all three numbers are 0.
        """
        place = np.stack(self.origins(np.arange(len(self.event))), axis=1)
        place[np.linalg.norm(place, axis=1) < SAME_PLACE] = 0.0
        flight = np.linalg.norm(place - place[self.mother], axis=1)
        displaced = place.any(axis=1)
        source = np.arange(len(place))
        source = np.where(displaced & (flight < SAME_PLACE), self.mother, source)
        while (further := source[source]).tobytes() != source.tobytes():
            source = further
        return place[source]


def read_record(listed: Any, num_events: int) -> Record:
    """The first so many events of ``prt`` of a batch, which has one more."""
    sizes = ak.num(listed).to_numpy()[:num_events]
    event = np.repeat(np.arange(num_events), sizes)
    start = (np.cumsum(sizes) - sizes)[event]
    flat = ak.flatten(listed[:num_events])
    fields = {"px": "px", "py": "py", "pz": "pz", "energy": "e"}
    return Record(
        listed=listed,
        event=event,
        pdg=flat.id.to_numpy().astype(np.int64),
        status=flat.status.to_numpy(),
        mother=flat.mother1.to_numpy() + start,
        daughter=flat.daughter1.to_numpy() + start,
        momenta={name: getattr(flat.p, field).to_numpy() for name, field in fields.items()},
    )


def origins(
    listed: Any, which: NDArray[np.intp], event: NDArray[np.intp]
) -> list[NDArray[np.float64]]:
    """Where particles of a batch begin: x, y, z [mm]; 0 where Pythia knows no vertex.

    The optional vertices of ``nextBatch`` (Pythia 8.317) are misaligned: the index into them has
    one entry too many at the beginning of each event, so that the entry of a particle stands as
    many places later as there are events up to its own, and the last of the batch fall off its
    end. Hence they are looked up there, and the last event of a batch is not to be asked for.

    Args:
        listed: ``prt`` of a batch, as it came.
        which: particles, counted through the batch.
        event: the event of each.
    """
    layout = ak.to_layout(listed).content
    vertices = layout.contents[layout.field_to_index("vProd")]
    index = np.asarray(vertices.index)[which + event + 1]
    return [
        np.where(index >= 0, ak.to_numpy(vertices.content[f"p{axis}"])[index], 0.0)
        for axis in "xyz"
    ]
