"""The data sets that can be simulated: their processes, selection, folders and branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jetssl_cli.data.simulation import btag, jetclass
from jetssl_cli.data.simulation.events import Wanted
from jetssl_cli.data.simulation.processes import BTAG_PROCESSES, PROCESSES, Process
from jetssl_cli.data.simulation.schema import Branches, Schema

Split = Literal["train", "val", "test"]
Name = Literal["jetclass", "btag"]


@dataclass(frozen=True)
class DataSet:
    """One data set."""

    version: int
    """Of the physics: other jets come from the same seed when it changes."""
    processes: Mapping[str, Process]
    wanted: Wanted
    """The selection of jets."""
    folders: Mapping[Split, tuple[str, int]]
    """Folder and number of the first file of a split."""
    schema: Schema
    make_jets: Callable[[Process, Wanted, int, int], Branches]
    """Process, selection, number of jets, seed -> jets."""


DATASETS: dict[Name, DataSet] = {
    "jetclass": DataSet(
        version=1,
        processes=PROCESSES,
        wanted=Wanted(),
        folders={"train": ("train_100M", 0), "val": ("val_5M", 120), "test": ("test_20M", 100)},
        schema=jetclass.SCHEMA,
        make_jets=jetclass.make_jets,
    ),
    "btag": DataSet(
        version=1,
        processes=BTAG_PROCESSES,
        wanted=Wanted(pt_min=20.0, pt_max=1000.0, eta_max=2.5),
        folders={"train": ("train", 0), "val": ("val", 0), "test": ("test", 0)},
        schema=btag.SCHEMA,
        make_jets=btag.make_jets,
    ),
}
"""Folders and numbers of JetClass are its own."""
