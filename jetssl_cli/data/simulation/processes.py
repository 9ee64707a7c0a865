"""The processes of the data sets: what Pythia is told, and which jets count.

As in JetClass (arXiv:2202.03772, section 3.1): pp collisions at 13 TeV; QCD jets recoil against a
Z that decays to neutrinos, jets of a Higgs or vector boson against another such Z, jets of a top
quark come from pairs. Leptons are electrons and muons.

Jets for b-tagging come from top pairs that decay to quarks alone, and from a Z' of 1 TeV with the
couplings of the Z (Pythia's default) that decays to one flavour: soft and hard jets of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jetssl_cli.errors import ConfigError, suggest

CLASSES = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
"""Labels in the order of the branches of JetClass."""
INVISIBLE = (12, 14, 16)
QUARKS = (1, 2, 3, 4, 5)
LEPTONS = (11, 13)

_Z_TO_NEUTRINOS = ("23:onMode = off", "23:onIfAny = 12 14 16")
_HIGGS = ("HiggsSM:ffbar2HZ = on", *_Z_TO_NEUTRINOS, "25:onMode = off")
_W_TO_QUARKS = ("24:onMode = off", "24:onIfAny = 1 2 3 4 5")
_ZPRIME = (
    "NewGaugeBoson:ffbar2gmZZprime = on",
    "Zprime:gmZmode = 3",
    "32:m0 = 1000",
    "32:onMode = off",
)
_TOP_PAIR = ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on")


@dataclass(frozen=True)
class Process:
    """One kind of event, and the jets that are taken from it."""

    name: str
    """As in the names of the files."""
    label: str
    """Class of its jets; empty where they have ``flavours``."""
    number: int
    """Goes into the seed; never to be changed."""
    settings: tuple[str, ...]
    """Lines for Pythia."""
    quarks: int = 0
    """Quarks or gluons that a jet has to contain."""
    leptons: int = 0
    """Charged leptons that a jet has to contain."""
    pair: bool = False
    """A particle and its antiparticle decay alike; each may give a jet."""
    flavours: tuple[int, ...] = ()
    """Jets of these flavours (5 bottom, 4 charm, 0 light) are taken, equally many of each, from
    anywhere in the event."""

    @property
    def matched(self) -> bool:
        """Whether a jet has to contain decay products; jets of QCD do not."""
        return self.label != "QCD"


PROCESSES: dict[str, Process] = {
    process.name: process
    for process in (
        Process("ZJetsToNuNu", "QCD", 0,
                ("WeakBosonAndParton:qqbar2gmZg = on", "WeakBosonAndParton:qg2gmZq = on",
                 "WeakZ0:gmZmode = 2", *_Z_TO_NEUTRINOS), quarks=1),
        Process("HToBB", "Hbb", 1, (*_HIGGS, "25:onIfAny = 5"), quarks=2),
        Process("HToCC", "Hcc", 2, (*_HIGGS, "25:onIfAny = 4"), quarks=2),
        Process("HToGG", "Hgg", 3, (*_HIGGS, "25:onIfMatch = 21 21"), quarks=2),
        Process("HToWW4Q", "H4q", 4, (*_HIGGS, "25:onIfMatch = 24 -24", *_W_TO_QUARKS), quarks=4),
        Process("HToWW2Q1L", "Hqql", 5,
                (*_HIGGS, "25:onIfMatch = 24 -24", "24:onMode = off",
                 "24:onIfAny = 1 2 3 4 5 11 13"), quarks=2, leptons=1),
        Process("ZToQQ", "Zqq", 6,
                ("WeakDoubleBoson:ffbar2gmZgmZ = on", "WeakZ0:gmZmode = 2", "23:onMode = off",
                 "23:onIfAny = 1 2 3 4 5 12 14 16"), quarks=2),
        Process("WToQQ", "Wqq", 7,
                ("WeakDoubleBoson:ffbar2ZW = on", *_Z_TO_NEUTRINOS, *_W_TO_QUARKS), quarks=2),
        Process("TTBar", "Tbqq", 8, (*_TOP_PAIR, *_W_TO_QUARKS), quarks=3, pair=True),
        Process("TTBarLep", "Tbl", 9,
                (*_TOP_PAIR, "24:onMode = off", "24:onIfAny = 11 13"),
                quarks=1, leptons=1, pair=True),
    )
}  # fmt: skip

BTAG_PROCESSES: dict[str, Process] = {
    process.name: process
    for process in (
        Process("TTBar", "", 10, (*_TOP_PAIR, *_W_TO_QUARKS), flavours=(5, 4, 0)),
        Process("ZprimeToBB", "", 11, (*_ZPRIME, "32:onIfAny = 5"), flavours=(5,)),
        Process("ZprimeToCC", "", 12, (*_ZPRIME, "32:onIfAny = 4"), flavours=(4,)),
        Process("ZprimeToQQ", "", 13, (*_ZPRIME, "32:onIfAny = 1 2 3"), flavours=(0,)),
    )
}


def find(names: Sequence[str], processes: Mapping[str, Process] = PROCESSES) -> list[Process]:
    """The processes of these names, each once; of no name, all.

    Raises:
        ConfigError: there is no such process; names the nearest.
    """
    for name in names:
        if name not in processes:
            raise ConfigError(f"no process {name!r}; {suggest(name, processes)}")
    return [processes[name] for name in dict.fromkeys(names or processes)]
