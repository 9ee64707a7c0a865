"""Jets for b-tagging, with the truth about every track, in the schema of arXiv:2008.02831.

Jets are anti-kT, R = 0.4, of particle-flow objects, with at least one track. The 15 tracks of
largest pT are stored. Lengths in mm, momenta in GeV, angles in rad.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation.clustering import Jets, cluster
from jetssl_cli.data.simulation.detector import Objects, reconstruct
from jetssl_cli.data.simulation.events import Generator, Wanted
from jetssl_cli.data.simulation.hadrons import Hadrons, flavours, heavy_hadrons, nearest_jet
from jetssl_cli.data.simulation.processes import Process
from jetssl_cli.data.simulation.schema import Branches, Schema
from jetssl_cli.errors import DataError
from jetssl_cli.physics import pseudorapidity

RADIUS = 0.4
MAX_TRACKS = 15
EVENTS_PER_BATCH = 25
LEAST_ACCEPTANCE = 1 / 200
"""Jets of the rarest flavour per event, below which a run gives up ..."""
EVENTS_TO_JUDGE = 1000
"""... after so many events."""
_FLOATS = ("pt", "phi", "eta", "ctgtheta", "charge", "d0", "d0err", "z0", "z0err")
SCHEMA = Schema(
    types={
        **{f"jet_{name}": np.float32 for name in ("pt", "phi", "eta", "M", "flav")},
        **dict.fromkeys(("n_trks", "n_vertices", "n_hadrons"), np.float32),
        **{f"trk_{name}": np.float32 for name in _FLOATS},
        **dict.fromkeys(("trk_pdg_id", "trk_vtx_index"), np.int32),
        "trk_prod_z": np.float64,
        **{f"true_vtx_{name}": np.float64 for name in ("x", "y", "z", "L3D")},
        "hadron_pdgid": np.int32,
        "hadron_z": np.float64,
    },
    lists={
        "trk_": ("ntrk", "n_trks"),
        "true_vtx_": ("nvtx", "n_vertices"),
        "hadron_": ("nhadron", "n_hadrons"),
    },
)


def make_jets(process: Process, wanted: Wanted, num_jets: int, seed: int) -> Branches:
    """Simulate so many jets, of each flavour of the process as many, give or take one.

    Raises:
        DataError: hardly any event gives a wanted jet.
    """
    streams = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    generator = Generator(process, wanted, 1 + int(streams[0]) % 899_999_999)
    rng = np.random.default_rng(streams[1])
    number = len(process.flavours)
    quota = {f: (num_jets + number - 1 - i) // number for i, f in enumerate(process.flavours)}
    parts: list[Branches] = []
    made, events = dict.fromkeys(quota, 0), 0
    while any(made[flavour] < quota[flavour] for flavour in quota):
        found = jets_of_events(generator, wanted, EVENTS_PER_BATCH, rng)
        keep = np.zeros(len(found["jet_flav"]), np.bool_)
        for flavour in quota:
            here = np.flatnonzero(found["jet_flav"] == flavour)[: quota[flavour] - made[flavour]]
            keep[here] = True
            made[flavour] += len(here)
        parts.append(SCHEMA.select(found, keep))
        events += EVENTS_PER_BATCH
        short = [f for f in quota if made[f] < quota[f] and made[f] < LEAST_ACCEPTANCE * events]
        if events >= EVENTS_TO_JUDGE and short:
            raise DataError(
                f"{process.name}: {made[short[0]]} jets of flavour {short[0]}, {wanted.pt_min:g} "
                f"to {wanted.pt_max:g} GeV, |eta| < {wanted.eta_max:g} in {events:,} events: this "
                "selection cannot be filled"
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in SCHEMA.types}


def jets_of_events(
    generator: Generator, wanted: Wanted, num_events: int, rng: np.random.Generator
) -> Branches:
    """Generate events, measure and cluster them, and keep the wanted jets."""
    record = generator.record(num_events)
    objects = reconstruct(generator.particles(record, record.visible), rng)
    vertices = record.vertices()
    hadrons = heavy_hadrons(record, vertices)
    jets = cluster(objects, radius=RADIUS, pt_min=wanted.pt_min)
    holder = nearest_jet(hadrons, jets)
    flavour = flavours(hadrons, holder, len(jets.event))
    owner, rows = hardest_tracks(objects, jets)
    kept = (jets.pt < wanted.pt_max) & (np.abs(jets.eta) < wanted.eta_max)
    kept &= np.bincount(owner, minlength=len(kept)) > 0
    new = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last for no jet
    jets, flavour = jets.take(np.flatnonzero(kept)), flavour[kept]
    owner, rows = new[owner[kept[owner]]], rows[kept[owner]]
    entry = record.visible[objects.particle[rows]]
    px, py, pz = objects.px[rows], objects.py[rows], objects.pz[rows]
    squared = jets.energy**2 - jets.pt**2 - jets.pz**2
    values: dict[str, NDArray[Any]] = {
        "jet_pt": jets.pt,
        "jet_eta": jets.eta,
        "jet_phi": jets.phi,
        "jet_M": np.sqrt(np.maximum(squared, 0.0)),
        "jet_flav": flavour,
        "n_trks": np.bincount(owner, minlength=len(jets.event)),
        "trk_pt": np.hypot(px, py),
        "trk_eta": pseudorapidity(px, py, pz),
        "trk_phi": np.arctan2(py, px),
        "trk_ctgtheta": pz / np.hypot(px, py),
        "trk_charge": objects.charge[rows],
        "trk_pdg_id": record.pdg[entry],
        "trk_d0": -objects.d0[rows],  # perigee parameters have the other sign than Delphes
        "trk_d0err": objects.d0_err[rows],
        "trk_z0": objects.dz[rows],
        "trk_z0err": objects.dz_err[rows],
        "trk_prod_z": vertices[entry, 2],
        **true_vertices(owner, vertices[entry], len(jets.event)),
        **hadrons_of_jets(owner, vertices[entry], hadrons, new[holder], jets),
    }
    return {name: values[name].astype(kind) for name, kind in SCHEMA.types.items()}


def hardest_tracks(
    objects: Objects, jets: Jets
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """The jet and the object of each track, at most 15 of a jet, in descending pT."""
    owner = np.repeat(np.arange(len(jets.sizes)), jets.sizes)
    charged = objects.charge[jets.rows] != 0
    owner, rows = owner[charged], jets.rows[charged]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return owner[place < MAX_TRACKS], rows[place < MAX_TRACKS]


def true_vertices(
    owner: Int[np.ndarray, " K"], vertices: Float[np.ndarray, "K 3"], num_jets: int
) -> dict[str, NDArray[Any]]:
    """The vertices of each jet's tracks by their distance from the collision, which is the first.

    The collision is there in every jet, whether or not a track comes from it.
    """
    primary = np.zeros((num_jets, 5))
    primary[:, 0] = np.arange(num_jets)
    distance = np.linalg.norm(vertices, axis=1)
    table = np.concatenate([np.column_stack([owner, distance, vertices]), primary])
    found, index = np.unique(table, axis=0, return_inverse=True)
    jet = found[:, 0].astype(np.int64)
    first = np.searchsorted(jet, np.arange(num_jets))
    return {
        "n_vertices": np.bincount(jet, minlength=num_jets),
        "trk_vtx_index": index.reshape(-1)[: len(owner)] - first[owner],
        **{f"true_vtx_{n}": found[:, 2 + i] for i, n in enumerate("xyz")},
        "true_vtx_L3D": found[:, 1],
    }


def hadrons_of_jets(
    owner: Int[np.ndarray, " K"],
    vertices: Float[np.ndarray, "K 3"],
    hadrons: Hadrons,
    holder: Int[np.ndarray, " H"],
    jets: Jets,
) -> dict[str, NDArray[Any]]:
    """The hadrons of each jet: those it holds, and those at whose decay one of its tracks begins.

    ``owner`` is the jet of each track, ``holder`` that of each hadron or -1.
    """
    listed = np.zeros((len(jets.event), len(hadrons.event)), np.bool_)
    held = np.flatnonzero(holder >= 0)
    listed[holder[held], held] = True
    same = (vertices[:, None, :] == hadrons.decay[None, :, :]).all(axis=2)
    displaced = np.linalg.norm(vertices, axis=1) > 0
    same &= displaced[:, None] & (jets.event[owner][:, None] == hadrons.event)
    track, hadron = np.nonzero(same)
    listed[owner[track], hadron] = True
    _, hadron = np.nonzero(listed)
    return {
        "n_hadrons": listed.sum(axis=1),
        "hadron_pdgid": hadrons.pdg[hadron],
        "hadron_z": hadrons.decay[hadron, 2],
    }
