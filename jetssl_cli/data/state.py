"""Where a reader stands, so that a training can go on with the batch that would have come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jetssl_cli.data.order import num_batches
from jetssl_cli.errors import DataError


@dataclass(frozen=True)
class Origin:
    """What fixes the batches of a reader, beside the seed; not the number of its workers."""

    sizes: tuple[int, ...]
    """Jets used of each file."""
    batch_size: int
    max_constituents: int | None
    ranks: int
    in_memory: bool = False
    subset: str | None = None
    """Digest of the jets that were chosen, where they are not all."""
    files: tuple[str, ...] = ()
    """Fingerprint of each file, where they are watched."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, on each rank."""
        return num_batches(self.sizes, self.batch_size, self.ranks)

    def state_after(self, seed: int, batches: int) -> ReaderState:
        """The state of a reader that has given so many batches on each rank, from its start."""
        epoch, batch = divmod(batches, self.batches_per_epoch)
        return ReaderState(seed, epoch, batch, self)

    def batches_before(self, state: ReaderState, name: str) -> int:
        """How many batches lie before a state.

        Raises:
            DataError: the state is that of a reader with another origin; it begins with ``name``.
        """
        for field in fields(self)[:-1]:
            ours, theirs = getattr(self, field.name), getattr(state.origin, field.name)
            if ours != theirs:
                raise DataError(
                    f"{name}: cannot be read on from where the run was: it had {field.name} = "
                    f"{_plain(theirs)}, expected {_plain(ours)}"
                )
        if state.epoch < 0 or not 0 <= state.batch < self.batches_per_epoch:
            raise DataError(
                f"{name}: cannot be read on from epoch {state.epoch}, batch {state.batch}: an "
                f"epoch has the batches 0 to {self.batches_per_epoch - 1}"
            )
        return state.epoch * self.batches_per_epoch + state.batch


def require_same_files(paths: Sequence[Path], now: Sequence[str], then: Sequence[str]) -> None:
    """Check that files hold the jets that they held when the run was written down.

    A reader that does not watch its files, now or then, knows no fingerprints: nothing is checked.

    Raises:
        DataError: names the first one that does not.
    """
    if not now or not then:
        return
    if len(now) != len(then):
        raise DataError(f"{paths[0]}: the run has read {len(then)} files here, not {len(now)}")
    for path, ours, theirs in zip(paths, now, then, strict=True):
        if ours != theirs:
            raise DataError(
                f"{path}: is not the file that the run has read: as many jets, but others "
                f"(fingerprint {ours[:16]}, it was {theirs[:16]})"
            )


@dataclass(frozen=True)
class ReaderState:
    """The next batch of a reader; the same on all ranks."""

    seed: int
    epoch: int
    batch: int
    """Number of the next batch within its epoch."""
    origin: Origin

    def to_dict(self) -> dict[str, Any]:
        """The state as it goes into JSON."""
        plain: dict[str, Any] = TypeAdapter(ReaderState).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ReaderState:
        """The state that ``to_dict`` gave.

        Raises:
            DataError: it is not such a state.
        """
        try:
            return TypeAdapter(ReaderState).validate_python(dict(plain))
        except ValidationError as err:
            first = err.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(
                f"not the state of a reader: {place} = {first['input']!r}: {first['msg']}"
            ) from None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
