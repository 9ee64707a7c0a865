"""Where a training stands: one file, from which it goes on bit for bit.

    RUN/snapshots/000000400.safetensors    weights, optimizer and random generators after 400 steps;
                                           as metadata what is not a tensor, and a hash of all

A file appears when it is complete and on the disk. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jetssl_cli.config import Strict
from jetssl_cli.data.place import to_disk
from jetssl_cli.data.state import ReaderState
from jetssl_cli.errors import RunError, reason
from jetssl_cli.progress import warn

FOLDER = "snapshots"
VERSION = 2
FACTS = "jetssl"
HASH = "sha256"


class CheckpointConfig(Strict):
    """How often a training is written down, to go on from there after whatever may happen."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between two snapshots, beside those by the clock."""
    every_minutes: PositiveFloat | None = 10.0
    """Minutes between two snapshots."""
    keep: PositiveInt = 2
    """The last so many are kept, until the run comes to its end."""
    requeue: bool = True
    """Within a SLURM job, SIGUSR1 (``#SBATCH --signal=USR1@120``) also puts the job back into the
    queue."""


class Facts(BaseModel):
    """What a snapshot has to say in JSON."""

    version: int
    code: str
    """Version of jetssl that wrote it."""
    steps: NonNegativeInt
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    reader: dict[str, Any]
    """State of the reader; see ``ReaderState``."""
    arithmetic: str | None = None
    """What the run computed in."""
    backbone: str | None = None
    """Hash of what its backbone gave, if it has one."""
    latest: dict[str, float]
    """The last measurements."""
    best: tuple[float, int, int]
    """Smallest validation loss, the step after which it was measured, validations since."""


@dataclass(frozen=True)
class Snapshot:
    """All that a training is, after some step."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """What goes into JSON: those of ``Facts``."""

    @property
    def reader(self) -> ReaderState:
        """Where the reader goes on.

        Raises:
            DataError: it is not such a state.
        """
        return ReaderState.from_dict(self.facts["reader"])

    def require_backbone(self, found: str | None, folder: Path) -> None:
        """Check that the backbone of a run that goes on, by its hash, is still the same.

        Raises:
            RunError: it is another one; names the folder of the snapshot.
        """
        if self.facts.get("backbone") not in (None, found):
            raise RunError(f"{folder}: the backbone is not the one that the run was begun with")


class Snapshots:
    """The snapshots of a run, of which the last few are kept."""

    def __init__(self, run: Path, cfg: CheckpointConfig) -> None:
        self.folder, self.cfg = run / FOLDER, cfg
        self._last = (0, time.monotonic())

    def count_from(self, steps: int) -> None:
        """Count the steps to the next one from here: a run goes on."""
        self._last = (steps, self._last[1])

    def due(self, steps: int) -> bool:
        """Whether it is time for one, after so many steps."""
        cfg, (before, then) = self.cfg, self._last
        if cfg.every_steps and steps // cfg.every_steps > before // cfg.every_steps:
            return True
        minutes = (time.monotonic() - then) / 60
        return cfg.every_minutes is not None and minutes >= cfg.every_minutes

    def write(self, snapshot: Snapshot) -> None:
        """Write one, and drop the oldest, and those of steps that the run has not come to.

        These are there where it went on from an earlier one, as they could not be read.

        Raises:
            RunError: it cannot be written; the others are as they were.
        """
        steps = int(snapshot.facts["steps"])
        self._last = (steps, time.monotonic())
        path = self.folder / f"{steps:09d}.safetensors"
        try:
            self.folder.mkdir(exist_ok=True)
            _write(path, snapshot)
        except (OSError, SafetensorError) as err:
            raise RunError(f"{path}: cannot be written: {reason(err)}") from None
        files = self.files()
        this = files.index(path)
        for old in (*files[:this], *files[this + self.cfg.keep :], *self._partial()):
            old.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Those that are there, the latest first."""
        return sorted(self.folder.glob("*.safetensors"), reverse=True)

    def latest(self) -> Snapshot | None:
        """The latest that can be read, if there is any; warns of those that cannot.

        Raises:
            RunError: there are some, and none can be read.
        """
        reasons: list[str] = []
        for path in self.files():
            try:
                found = read(path)
            except RunError as err:
                reasons.append(str(err))
                continue
            if reasons:
                warn(f"{'; '.join(reasons)}; going on from {path.name}")
            return found
        if reasons:
            raise RunError("; ".join(reasons))
        return None

    def clear(self) -> None:
        """Remove all, and what a killed process left: the run has come to its end."""
        for path in (*self.files(), *self._partial()):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # a link, or not all of it is ours
            self.folder.rmdir()

    def _partial(self) -> Iterator[Path]:
        return self.folder.glob(".*.partial")


def read(path: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        RunError: it is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(said[FACTS])
        version = facts.get("version")
    except (
        OSError,
        SafetensorError,
        LookupError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as err:
        raise RunError(f"{path}: not a readable snapshot: {reason(err)}") from None
    if version != VERSION:
        raise RunError(f"{path}: has version {version!r:.40}; this jetssl reads {VERSION}")
    if said.get(HASH) != content_hash(tensors, said[FACTS]):
        raise RunError(f"{path}: is damaged: its hash is not that of its content")
    try:
        Facts.model_validate_json(said[FACTS], strict=True)
    except ValidationError as err:
        wrong = err.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise RunError(f"{path}: not a readable snapshot: {place}: {wrong['msg']}") from None
    return Snapshot(tensors, facts)


def _write(path: Path, snapshot: Snapshot) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in snapshot.tensors.items()}
    facts = json.dumps({**snapshot.facts, "version": VERSION})
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata={FACTS: facts, HASH: content_hash(tensors, facts)})
        partial.chmod(path.parent.stat().st_mode & 0o666)
        to_disk(partial)
        partial.replace(path)
        to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def content_hash(tensors: Mapping[str, Tensor], facts: str) -> str:
    """SHA-256 of tensors on the host, with names, types and shapes, and of what is told of them."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
