"""Which data a run reads, and how fast they come."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt, model_validator
from torch.utils.data import DataLoader, IterableDataset

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.mixed import MixedJets, Mixture
from jetssl_cli.data.reader import Endless, JetReader
from jetssl_cli.data.state import ReaderState
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.subset import draw
from jetssl_cli.data.truth import Wanted
from jetssl_cli.data.watch import Watch
from jetssl_cli.errors import DataError, JetSSLError, RunError

VAL_JETS_AT_A_TIME = 1000
"""At most; the same on any number of devices, and so are the numbers that a validation finds."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


Files = Annotated[tuple[Path, ...], BeforeValidator(_as_list)]


class DataConfig(Strict):
    """Data of a run."""

    train: Files
    """Jagged files to train on."""
    val: Files
    """Jagged files to validate on."""
    batch_size: PositiveInt = 1000
    """Jets of an optimizer step, in all processes together."""
    max_constituents: PositiveInt = 64
    """The first so many constituents of a jet are used."""
    num_jets: PositiveInt | None = None
    """Train on the first so many jets only."""
    subset: PositiveInt | None = None
    """Train on so many of these jets, equally many of each class, drawn with train.seed; those of a
    smaller number are among those of a larger one."""
    num_val_jets: PositiveInt | None = 20_000
    """Validate on the first so many jets only."""
    workers: NonNegativeInt = 0
    """Processes that read; 0 reads in the training process. Batches do not depend on it.

    1, 2, 4, 8 and 16 are efficient: with another number, jets are read several times.
    """
    in_memory: bool = False
    """Hold all training jets in memory, in each process that reads, and shuffle all at once."""
    mixture: Mixture | None = None
    """Two mixed samples of two classes take the place of the labelled jets (held in memory)."""

    @model_validator(mode="after")
    def _one_choice_of_jets(self) -> DataConfig:
        if self.subset is not None and self.mixture is not None:
            raise ValueError(
                "data.subset (--num-jets) is not for a mixture: it says its own numbers"
            )
        return self

    def train_reader(
        self,
        subjet_radius: float | None = None,
        *,
        truth: Wanted | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> JetReader:
        """The training jets of one process; with subjets, if their radius is given.

        Args:
            subjet_radius: find subjets of this radius.
            seed: of the subset, if not all jets are used.
            truth: truth about constituents that is wanted.
            batch_size: jets that this process reads at a time, if not all of a batch.
            rank: number of this process.
            ranks: processes that share the jets.

        Raises:
            DataError: a file cannot be read or lacks the truth or the classes that are wanted, or
                there are fewer jets than reading processes.
        """
        chosen = draw(self.train, self.subset, seed, self.num_jets) if self.subset else None
        stream = JetStream(
            self.train,
            batch_size=batch_size or self.batch_size,
            max_constituents=self.max_constituents,
            num_jets=None if chosen else self.num_jets,
            chosen=chosen,
            subjet_radius=subjet_radius,
            truth=truth,
            watch=Watch(self.train),
            rank=rank,
            ranks=ranks,
        )
        if stream.num_jets < self.workers:
            raise DataError(
                f"{self.train[0]}: {stream.num_jets} jets are too few for data.workers = "
                f"{self.workers}"
            )
        if self.mixture is not None:
            return MixedJets(stream, self.mixture)
        return JetsInMemory(stream) if self.in_memory else stream

    def val_stream(
        self, subjet_radius: float | None = None, truth: Wanted | None = None
    ) -> JetReader:
        """The validation jets, all of them; with subjets, if their radius is given.

        Of a mixture, two samples with the same share of signal as those of the training.
        """
        stream = JetStream(
            self.val,
            batch_size=min(self.batch_size, VAL_JETS_AT_A_TIME),
            max_constituents=self.max_constituents,
            num_jets=self.num_val_jets,
            subjet_radius=subjet_radius,
            truth=truth,
            watch=Watch(self.val),
        )
        if self.mixture is None:
            return stream
        train = JetStream(self.train, batch_size=1, num_jets=self.num_jets)
        return MixedJets(stream, self.mixture.of(train).scaled_to(stream))

    def endless(
        self, reader: JetReader, seed: int, start: ReaderState | None = None
    ) -> DataLoader[JetBatch]:
        """Shuffled batches without end, from a state on.

        Raises:
            DataError: the state is not one of this reader with this seed.
        """
        return DataLoader(
            Endless(reader, seed, start),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="spawn" if self.workers else None,
            worker_init_fn=_leave_signals_to_the_training,
        )

    def once(self, reader: JetReader) -> DataLoader[JetBatch]:
        """Every jet once, in order; torch's own generator is left as it is.

        From it a DataLoader draws a seed for its processes, and dropout would come out otherwise in
        a run that validates again when it goes on.
        """
        assert isinstance(reader, IterableDataset)
        return DataLoader(reader, batch_size=None, generator=torch.Generator())


@contextmanager
def reading() -> Iterator[None]:
    """Tell what goes wrong in the processes that read as what it is, in one line.

    Raises:
        RunError: one of them was killed.
        JetSSLError: what one of them has raised.
    """
    try:
        yield
    except RuntimeError as err:
        if not str(err).startswith("DataLoader worker"):
            raise
        reason = " ".join(str(err).split()).removeprefix("DataLoader worker ").rstrip(".")
        raise RunError(
            f"a process that reads data has ended: {reason}; --resume goes on from the last "
            "snapshot"
        ) from None
    except JetSSLError as err:
        if "in DataLoader worker process" not in str(err):
            raise
        last = str(err).strip().splitlines()[-1]  # the traceback of the other process ends with it
        raise type(err)(last.partition(": ")[2]) from None


def _leave_signals_to_the_training(worker: int) -> None:
    """What asks a training to stop may reach all its processes; it decides when these end.

    torchrun and shells signal the group, and some batch systems every process. SIGTERM still ends a
    process that reads, as torch has no other way where one hangs.
    """
    del worker
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
