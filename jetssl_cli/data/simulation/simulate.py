"""``jetssl simulate``: ROOT files of simulated jets, in the folders of a data set.

The work is cut into units of a few hundred jets of one process. Each has a seed of its own, made
from (seed, split, process, unit), so that the jets do not depend on the number of processes. The
seed has 128 bits; Pythia takes one of 900 million that is made from it, which n units of a process
have in common with a probability of about n^2 / 1.8e9: then their events are the same, what the
detector makes of them is not. A finished unit is kept in a hidden folder until its file is written:
a run that was stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from jetssl_cli.config import Strict
from jetssl_cli.data.simulation import rootfile
from jetssl_cli.data.simulation.datasets import DATASETS, Name, Split
from jetssl_cli.data.simulation.events import Wanted, require_pythia
from jetssl_cli.data.simulation.processes import Process, find
from jetssl_cli.data.subjets import require_fastjet
from jetssl_cli.data.workers import share
from jetssl_cli.errors import DataError
from jetssl_cli.progress import progress

JETS_PER_UNIT = 500
JETS_PER_FILE = 100_000
SPLITS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
"""What goes into the seed."""


class SimulateConfig(Strict):
    """What to simulate, and where to."""

    out: Path
    """Folder for the folders of the splits."""
    dataset: Name = "jetclass"
    """Whose schema, processes and selection."""
    jets: PositiveInt
    """Jets of each process."""
    split: Split = "train"
    """Each has seeds of its own."""
    seed: NonNegativeInt = 0
    """The same seed gives the same jets, whatever the number of jobs."""
    processes: tuple[str, ...] = ()
    """Names as in those of the files; none for all."""
    jobs: PositiveInt = 1
    """Processes of the computer that share the work."""
    pt_min: PositiveFloat | None = None
    """Least transverse momentum of a jet [GeV]; of itself that of the data set."""
    pt_max: PositiveFloat | None = None
    """Largest transverse momentum of a jet [GeV]; of itself that of the data set."""
    eta_max: PositiveFloat | None = None
    """Largest |pseudorapidity| of a jet; of itself that of the data set."""
    overwrite: bool = False
    """Simulate again what is already there."""

    @property
    def wanted(self) -> Wanted:
        """The selection of jets."""
        own = self.model_dump(include={"pt_min", "pt_max", "eta_max"}, exclude_none=True)
        return replace(DATASETS[self.dataset].wanted, **own)


class Simulated(Strict):
    """One file of jets."""

    path: Path
    process: str
    num_jets: int
    skipped: bool
    """It was there already, complete and made in the same way."""


class SimulateReport(Strict):
    """What a simulation did."""

    files: tuple[Simulated, ...]
    simulated: int
    """Jets simulated by this run; others were there."""
    seconds: float

    @property
    def num_jets(self) -> int:
        """Jets in all files."""
        return sum(file.num_jets for file in self.files)


class _Unit(NamedTuple):
    """Some jets of one file."""

    path: Path
    dataset: Name
    process: str
    wanted: Wanted
    num_jets: int
    seed: int


class _File(NamedTuple):
    """One file to write."""

    path: Path
    dataset: Name
    process: str
    num_jets: int
    settings: dict[str, Any]
    units: tuple[_Unit, ...]


def simulate(cfg: SimulateConfig) -> SimulateReport:
    """Simulate jets; files and units that are already there are kept, units only if undamaged.

    Raises:
        ConfigError: Pythia or FastJet is not installed, or there is no such process.
        DataError: a file is there already, made with other settings; the selection cannot be
            filled; or a file cannot be written.
    """
    begin = time.monotonic()
    require_pythia()
    require_fastjet("simulating needs FastJet", "simulate")
    files = plan(cfg)
    ready = {file.path for file in files if not cfg.overwrite and _is_made(file)}
    todo = [file for file in files if file.path not in ready]
    for file in files:
        _remove_old_parts(file, made=file.path in ready)
    missing = {
        file.path: {unit.path for unit in file.units if not rootfile.is_part(unit.path)}
        for file in todo
    }
    owner = {unit.path: file for file in todo for unit in file.units}
    units = [unit for file in todo for unit in file.units if unit.path in missing[file.path]]
    total = sum(unit.num_jets for unit in units)
    with progress("simulate", total, "jets") as advance:
        for file in todo:
            if not missing[file.path]:
                _finish(file)
        for unit, made in share(_work, units, cfg.jobs, doing="simulating", broken="stopped"):
            file = owner[unit.path]
            missing[file.path].remove(unit.path)
            if not missing[file.path]:
                _finish(file)
            advance(made, unit.process)
    return SimulateReport(
        files=tuple(
            Simulated(path=file.path, process=file.process, num_jets=file.num_jets,
                      skipped=file.path in ready)
            for file in files
        ),
        simulated=total,
        seconds=time.monotonic() - begin,
    )  # fmt: skip


def plan(cfg: SimulateConfig) -> list[_File]:
    """Which files are written, and the units of each.

    Raises:
        ConfigError: there is no such process.
    """
    dataset = DATASETS[cfg.dataset]
    folder, number = dataset.folders[cfg.split]
    files = []
    for process in find(cfg.processes, dataset.processes):
        settings = {
            "program": f"jetssl simulate {cfg.dataset}",
            "version": dataset.version,
            "process": process.name,
            **cfg.model_dump(include={"jets", "split", "seed"}),
            **asdict(cfg.wanted),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        for index, start in enumerate(range(0, cfg.jets, JETS_PER_FILE)):
            path = cfg.out / folder / f"{process.name}_{number + index:03d}.root"
            stop = min(start + JETS_PER_FILE, cfg.jets)
            parts = path.with_name(f".{path.name}.{digest}.parts")
            units = tuple(
                _Unit(
                    parts / f"{first // JETS_PER_UNIT:06d}.npz",
                    cfg.dataset,
                    process.name,
                    cfg.wanted,
                    min(JETS_PER_UNIT, stop - first),
                    unit_seed(cfg.seed, cfg.split, process, first // JETS_PER_UNIT),
                )
                for first in range(start, stop, JETS_PER_UNIT)
            )
            files.append(_File(path, cfg.dataset, process.name, stop - start, settings, units))
    return files


def unit_seed(seed: int, split: Split, process: Process, unit: int) -> int:
    """The seed of a unit: 128 bits hashed from all of these."""
    entropy = (seed, SPLITS[split], process.number, unit)
    words = np.random.SeedSequence(entropy).generate_state(4, np.uint32)
    return int.from_bytes(words.tobytes(), "little")


def _work(unit: _Unit) -> int:
    dataset = DATASETS[unit.dataset]
    process = dataset.processes[unit.process]
    made = dataset.make_jets(process, unit.wanted, unit.num_jets, unit.seed)
    rootfile.write_part(unit.path, made)
    return unit.num_jets


def _is_made(file: _File) -> bool:
    """Whether the file is there, made with the same settings.

    Raises:
        DataError: it is there, made in another way.
    """
    if not file.path.exists():
        return False
    found = rootfile.settings_of(file.path)
    names = (name for name, value in file.settings.items() if found.get(name) != value)
    other = [f"{name} = {found.get(name)}, not {file.settings[name]}" for name in names]
    if other:
        raise DataError(
            f"{file.path}: is there already, made with {', '.join(other)}; choose another folder "
            "or --overwrite"
        )
    return True


def _remove_old_parts(file: _File, *, made: bool) -> None:
    """Remove what a run left that was stopped: one with other settings, or once it was ``made``."""
    mine = file.units[0].path.parent
    for folder in file.path.parent.glob(f".{file.path.name}.*.parts"):
        if made or folder != mine:
            shutil.rmtree(folder, ignore_errors=True)
    for old in mine.glob(".*.partial"):
        old.unlink(missing_ok=True)


def _finish(file: _File) -> None:
    paths: Sequence[Path] = [unit.path for unit in file.units]
    rootfile.write(file.path, paths, file.settings, DATASETS[file.dataset].schema)
    shutil.rmtree(paths[0].parent)
