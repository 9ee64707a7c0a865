"""Events by Pythia 8, a batch at a time, as flat arrays.

Pythia 8.3 (arXiv:2203.11601; cite it where simulated jets are used) is an optional dependency. All
of its own defaults hold (showers, hadronisation, multiparton interactions, the Monash tune,
arXiv:1404.5630). Particles with c tau above 1 m are stable: pions, kaons but K0S, neutrons, muons.
K0S, Lambda and other hyperons decay in flight, as in JetClass: were they stable, the tail
of the impact parameters would be far shorter than that of the real jets.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation.processes import INVISIBLE, LEPTONS, Process
from jetssl_cli.data.simulation.record import Record, read_record
from jetssl_cli.errors import ConfigError, DataError

ENERGY = 13_000.0
"""Of the collision [GeV]."""
STABLE_ABOVE = 1000.0
"""c tau [mm] above which particles do not decay."""
MAX_SEED = 900_000_000
"""Of Pythia."""
LOWEST_PT_HAT = 0.9
"""Transverse momentum of the hard process, in units of the least one of a jet: recoil against
initial-state radiation may add this much. Some jets just above the limit come from still softer
processes, and are missing; with all of those, hardly any event would give a jet."""
VETO_AFTER = 200_000
"""So many hard processes in a row are thrown away before one is let through all the same."""


@dataclass(frozen=True)
class Particles:
    """Particles of several events end to end; momenta [GeV], origins [mm]."""

    event: Int[np.ndarray, " T"]
    """Number of the event, ascending."""
    pdg: Int[np.ndarray, " T"]
    px: Float[np.ndarray, " T"]
    py: Float[np.ndarray, " T"]
    pz: Float[np.ndarray, " T"]
    energy: Float[np.ndarray, " T"]
    charge: Float[np.ndarray, " T"]
    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    z: Float[np.ndarray, " T"]


@dataclass(frozen=True)
class Products:
    """What bosons and tops of several events decayed to, before showers; momenta [GeV].

    Neutrinos of the Z that the jet recoils against are not among them.
    """

    event: Int[np.ndarray, " P"]
    """Number of the event."""
    group: Int[np.ndarray, " P"]
    """0, or where a pair decays -1 of an antiparticle and 1 of a particle."""
    pdg: Int[np.ndarray, " P"]
    px: Float[np.ndarray, " P"]
    py: Float[np.ndarray, " P"]
    pz: Float[np.ndarray, " P"]
    energy: Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Wanted:
    """Which jets are wanted."""

    pt_min: float = 500.0
    """Least transverse momentum [GeV]."""
    pt_max: float = 1000.0
    """Largest transverse momentum [GeV]."""
    eta_max: float = 2.0
    """Largest |pseudorapidity|."""


class Generator:
    """Pythia, set up for one process and one seed."""

    def __init__(self, process: Process, wanted: Wanted, seed: int) -> None:
        """Raises ConfigError if Pythia is not installed, DataError if it refuses."""
        pythia8 = require_pythia()
        self._process = process
        self._pythia = pythia8.Pythia("", False)
        for line in (
            "Print:quiet = on",
            "Random:setSeed = on",
            f"Random:seed = {seed}",
            f"Beams:eCM = {ENERGY}",
            "ParticleDecays:limitTau0 = on",
            f"ParticleDecays:tau0Max = {STABLE_ABOVE}",
            f"PhaseSpace:pTHatMin = {0 if process.flavours else LOWEST_PT_HAT * wanted.pt_min}",
            *process.settings,
        ):
            assert self._pythia.readString(line), line
        self._veto = _veto(pythia8, process, wanted)
        self._pythia.setUserHooksPtr(self._veto)
        if not self._pythia.init():
            raise DataError(f"{process.name}: Pythia cannot generate jets of {wanted}")

    @property
    def tried(self) -> int:
        """Hard processes so far."""
        return int(self._veto.tried)

    def record(self, num_events: int) -> Record:
        """Generate so many events; their numbers begin at 0."""
        return read_record(self._pythia.nextBatch(num_events + 1).prt, num_events)

    def batch(self, num_events: int) -> tuple[Particles, Products]:
        """Generate so many events: what can be seen of them, and what their bosons decayed to."""
        record = self.record(num_events)
        return self.particles(record, record.visible), self._products(record)

    def particles(self, record: Record, which: NDArray[np.intp]) -> Particles:
        """Some entries of a record, where they began."""
        return Particles(
            event=record.event[which],
            pdg=record.pdg[which],
            charge=self._charges(record.pdg[which]),
            **dict(zip("xyz", record.origins(which), strict=True)),
            **{name: column[which] for name, column in record.momenta.items()},
        )

    def _products(self, record: Record) -> Products:
        mother = record.pdg[record.mother]
        from_decay = np.isin(np.abs(mother), (6, 23, 24, 25))
        recoil = (np.abs(mother) == 23) & np.isin(np.abs(record.pdg), INVISIBLE)
        hard = np.flatnonzero((np.abs(record.status) == 23) & from_decay & ~recoil)
        group = np.sign(mother[hard]) if self._process.pair else np.zeros(len(hard), np.int64)
        return Products(
            event=record.event[hard],
            group=group,
            pdg=record.pdg[hard],
            **{name: column[hard] for name, column in record.momenta.items()},
        )

    def _charges(self, pdg: NDArray[Any]) -> NDArray[np.float64]:
        numbers, index = np.unique(pdg, return_inverse=True)
        data = self._pythia.particleData
        charges = np.array([data.charge(int(number)) for number in numbers], np.float64)
        return charges[index]


def require_pythia() -> ModuleType:
    """Pythia 8.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pythia8mc
    except ModuleNotFoundError:
        raise ConfigError(
            "simulating needs Pythia 8, which is not installed: pip install 'jetssl[simulate]'"
        ) from None
    found: ModuleType = pythia8mc
    return found


def _veto(pythia8: ModuleType, process: Process, wanted: Wanted) -> Any:
    """Throw away hard processes from which no wanted jet can come, before any shower is made."""

    class Veto(pythia8.UserHooks):  # type: ignore[misc,name-defined]
        tried = 0
        in_a_row = 0

        def canVetoProcessLevel(self) -> bool:  # noqa: N802
            return True

        def doVetoProcessLevel(self, record: Any) -> bool:  # noqa: N802
            self.tried += 1
            self.in_a_row += 1
            if promising(process, wanted, record) or self.in_a_row > VETO_AFTER:
                self.in_a_row = 0
                return False
            return True

    return Veto()


def promising(process: Process, wanted: Wanted, record: Any) -> bool:
    """Whether a hard process (Pythia's event record) may give a wanted jet, with a margin.

    The visible decay products together need 0.9 of the least transverse momentum, at most 1.25 of
    the largest, and |eta| up to 0.5 beyond the limit; and they must be the right ones. Of processes
    whose jets are taken from anywhere, all are promising.
    """
    if process.flavours:
        return True
    groups: dict[int, list[Any]] = {}
    for index in range(3, record.size()):
        particle = record[index]
        if particle.status() != 23 or abs(particle.id()) in INVISIBLE:
            continue
        mother = record[particle.mother1()].id()
        key = (1 if mother > 0 else -1) if process.pair else 0
        groups.setdefault(key, []).append(particle)
    for products in groups.values():
        leptons = sum(abs(particle.id()) in LEPTONS for particle in products)
        if (len(products) - leptons, leptons) != (process.quarks, process.leptons):
            continue
        px, py, pz = (sum(getattr(p, f"p{axis}")() for p in products) for axis in "xyz")
        pt = float(np.hypot(px, py))
        in_range = LOWEST_PT_HAT * wanted.pt_min < pt < 1.25 * wanted.pt_max
        if in_range and abs(np.arcsinh(pz / pt)) < wanted.eta_max + 0.5:
            return True
    return False
