"""Jets in the schema of JetClass (arXiv:2202.03772): selection, matching, branches.

As the ntuple code that made JetClass does: jets of 500 to 1000 GeV within |eta| < 2 that hold all
visible decay products within dR < 0.8 of their axis; constituents in descending pT; ``part_deta``
multiplied by the sign of the jet's pseudorapidity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from jetssl_cli.data.simulation.clustering import Jets, cluster, soft_drop_mass
from jetssl_cli.data.simulation.detector import (
    CHARGED_HADRON,
    ELECTRON,
    MUON,
    NEUTRAL_HADRON,
    PHOTON,
    Objects,
    reconstruct,
)
from jetssl_cli.data.simulation.events import Generator, Particles, Products, Wanted
from jetssl_cli.data.simulation.processes import CLASSES, INVISIBLE, LEPTONS, Process
from jetssl_cli.data.simulation.schema import Branches, Schema
from jetssl_cli.errors import DataError
from jetssl_cli.physics import pseudorapidity, wrap

RADIUS = 0.8
MAX_CONSTITUENTS = 128
EVENTS_PER_BATCH = 50
FLAGS = {
    "part_isChargedHadron": CHARGED_HADRON,
    "part_isNeutralHadron": NEUTRAL_HADRON,
    "part_isPhoton": PHOTON,
    "part_isElectron": ELECTRON,
    "part_isMuon": MUON,
}
PART_FLOATS = (
    "px", "py", "pz", "energy", "deta", "dphi", "d0val", "d0err", "dzval", "dzerr", "charge",
)  # fmt: skip
JET_FLOATS = ("pt", "eta", "phi", "energy", "nparticles", "sdmass")
AUX_FLOATS = ("genpart_eta", "genpart_phi", "genpart_pid", "genpart_pt", "truth_match")
_LABEL_TYPES = {"QCD": np.float32, "Zqq": np.int32, "Wqq": np.int32, "Tbqq": np.int32,
                "Tbl": np.int32}  # fmt: skip
TYPES: dict[str, Any] = {
    **{f"part_{name}": np.float32 for name in PART_FLOATS},
    **dict.fromkeys(FLAGS, np.int32),
    **{f"label_{name}": _LABEL_TYPES.get(name, np.bool_) for name in CLASSES},
    **{f"jet_{name}": np.float32 for name in JET_FLOATS},
    **{f"aux_{name}": np.float32 for name in AUX_FLOATS},
}
"""Branches in the order of JetClass; those that begin with ``part_`` have a list for each jet."""
SCHEMA = Schema(types=TYPES, lists={"part_": ("npart", "jet_nparticles")})
LEAST_ACCEPTANCE = 1 / 200
"""Jets per event, below which a run gives up ..."""
EVENTS_TO_JUDGE = 1000
"""... after so many events."""
BOSON = {"H": 25, "Z": 23, "W": 24, "T": 6}


def make_jets(process: Process, wanted: Wanted, num_jets: int, seed: int) -> Branches:
    """Simulate so many jets of a process; the first of them do not depend on their number.

    Raises:
        DataError: hardly any event gives a wanted jet.
    """
    streams = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    generator = Generator(process, wanted, 1 + int(streams[0]) % 899_999_999)
    rng = np.random.default_rng(streams[1])
    parts: list[Branches] = []
    made = events = 0
    while made < num_jets:
        particles, products = generator.batch(EVENTS_PER_BATCH)
        parts.append(jets_of_events(process, wanted, particles, products, rng))
        made += len(parts[-1]["jet_pt"])
        events += EVENTS_PER_BATCH
        if events >= EVENTS_TO_JUDGE and made < LEAST_ACCEPTANCE * events:
            raise DataError(
                f"{process.name}: {made} jets of {wanted.pt_min:g} to {wanted.pt_max:g} GeV with "
                f"|eta| < {wanted.eta_max:g} in {events:,} events ({generator.tried:,} hard "
                "processes): this selection cannot be filled"
            )
    return first({name: np.concatenate([part[name] for part in parts]) for name in TYPES}, num_jets)


def first(branches: Mapping[str, NDArray[Any]], num_jets: int) -> Branches:
    """The first so many jets."""
    rows = int(branches["jet_nparticles"][:num_jets].sum())
    return {
        name: values[: rows if name.startswith("part_") else num_jets]
        for name, values in branches.items()
    }


def jets_of_events(
    process: Process,
    wanted: Wanted,
    particles: Particles,
    products: Products,
    rng: np.random.Generator,
) -> Branches:
    """Measure events, cluster them, and keep the wanted jets."""
    objects = reconstruct(particles, rng)
    jets = cluster(objects, radius=RADIUS, pt_min=wanted.pt_min)
    jets = jets.take(
        np.flatnonzero((jets.pt < wanted.pt_max) & (np.abs(jets.eta) < wanted.eta_max))
    )
    group = match(process, jets, products)
    there = group >= 0
    jets, group = jets.take(np.flatnonzero(there)), group[there]
    return branches_of(process, objects, jets, products, group)


def match(process: Process, jets: Jets, products: Products) -> Int[np.ndarray, " J"]:
    """The decay each jet holds: an index into the groups of ``products``, or -1 for none.

    Groups are numbered as ``group_numbers`` does. A jet holds a decay if all of its quarks, gluons
    and charged leptons lie within dR < 0.8 of the axis, and they are as many as the process says.
    Of QCD every jet counts (0).
    """
    if not process.matched:
        return np.zeros(len(jets.event), np.int64)
    number, of_event = group_numbers(products)
    visible = ~np.isin(np.abs(products.pdg), INVISIBLE)
    lepton = np.isin(np.abs(products.pdg), LEPTONS)
    count = len(of_event)
    quarks = np.bincount(number[visible & ~lepton], minlength=count)
    leptons = np.bincount(number[visible & lepton], minlength=count)
    right = (quarks == process.quarks) & (leptons == process.leptons)

    jet, product = np.nonzero(jets.event[:, None] == products.event[None, :])
    eta = pseudorapidity(products.px, products.py, products.pz)[product]
    phi = np.arctan2(products.py, products.px)[product]
    far = np.hypot(eta - jets.eta[jet], wrap(phi - jets.phi[jet])) >= RADIUS
    lost = np.zeros((len(jets.event), max(count, 1)), np.bool_)
    bad = far & visible[product]
    lost[jet[bad], number[product[bad]]] = True
    there = np.zeros_like(lost)
    there[jet, number[product]] = True
    held = there & ~lost
    held[:, :count] &= right
    return np.where(held.any(axis=1), held.argmax(axis=1), -1)


def group_numbers(
    products: Products,
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " G"]]:
    """Number the groups of all events; returns the number of each product, the event of each."""
    keys = products.event * 3 + products.group + 1
    numbers, index = np.unique(keys, return_inverse=True)
    return index, numbers // 3


def branches_of(
    process: Process,
    objects: Objects,
    jets: Jets,
    products: Products,
    group: Int[np.ndarray, " J"],
) -> Branches:
    """All branches of these jets, in their types."""
    place = np.arange(len(jets.rows)) - np.repeat(np.cumsum(jets.sizes) - jets.sizes, jets.sizes)
    rows = jets.rows[place < MAX_CONSTITUENTS]
    sizes = np.minimum(jets.sizes, MAX_CONSTITUENTS)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    px, py, pz = objects.px[rows], objects.py[rows], objects.pz[rows]
    eta, phi = jets.eta, jets.phi
    flip = np.where(eta > 0, 1.0, -1.0)
    values: dict[str, NDArray[Any]] = {
        "part_px": px,
        "part_py": py,
        "part_pz": pz,
        "part_energy": objects.energy[rows],
        "part_deta": flip[owner] * (pseudorapidity(px, py, pz) - eta[owner]),
        "part_dphi": wrap(np.arctan2(py, px) - phi[owner]),
        "part_d0val": objects.d0[rows],
        "part_d0err": objects.d0_err[rows],
        "part_dzval": objects.dz[rows],
        "part_dzerr": objects.dz_err[rows],
        "part_charge": objects.charge[rows],
        **{flag: objects.kind[rows] == kind for flag, kind in FLAGS.items()},
        **{f"label_{name}": np.full(len(sizes), name == process.label) for name in CLASSES},
        "jet_pt": jets.pt,
        "jet_eta": eta,
        "jet_phi": phi,
        "jet_energy": jets.energy,
        "jet_nparticles": sizes,
        "jet_sdmass": soft_drop_mass(objects, jets, radius=RADIUS),
        **truth(process, products, group),
    }
    return {name: values[name].astype(kind) for name, kind in TYPES.items()}


def truth(
    process: Process, products: Products, group: Int[np.ndarray, " J"]
) -> dict[str, NDArray[Any]]:
    """The boson or top in each jet, and the code of its decay, as the ``aux_`` branches have them.

    Codes: 11 and 12 t -> b c q and b q q, 15 and 16 t -> b e nu and b mu nu, 21 and 22 W -> c q and
    q q, 31, 32 and 33 Z -> b b, c c and q q, 41, 42, 44, 45 and 46 H -> b b, c c, g g, 4 q and
    l nu q q, 50 QCD, which has no particle.
    """
    if not process.matched:
        none = np.zeros(len(group))
        return {f"aux_{name}": none for name in AUX_FLOATS} | {"aux_truth_match": none + 50}
    number, of_event = group_numbers(products)
    count = len(of_event)
    px, py, pz = (
        np.bincount(number, getattr(products, name), count)[group] for name in ("px", "py", "pz")
    )
    flavour = np.abs(products.pdg)

    def has(*numbers: int) -> NDArray[np.bool_]:
        there = np.bincount(number[np.isin(flavour, numbers)], minlength=count)[group] > 0
        return np.asarray(there)

    codes: dict[str, Any] = {
        "Tbqq": np.where(has(4), 11, 12),
        "Tbl": np.where(has(11), 15, 16),
        "Wqq": np.where(has(4, 5), 21, 22),
        "Zqq": np.select([has(5), has(4)], [31, 32], 33),
        "Hbb": 41, "Hcc": 42, "Hgg": 44, "H4q": 45, "Hqql": 46,
    }  # fmt: skip
    sign = np.ones(len(group))
    if process.pair:
        sign = np.zeros(count)
        sign[number] = products.group
        sign = sign[group]
    return {
        "aux_genpart_eta": pseudorapidity(px, py, pz),
        "aux_genpart_phi": np.arctan2(py, px),
        "aux_genpart_pid": sign * BOSON[process.label[0]],
        "aux_genpart_pt": np.hypot(px, py),
        "aux_truth_match": np.broadcast_to(codes[process.label], group.shape),
    }
