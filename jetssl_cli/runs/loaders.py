"""Which data a run reads, and how fast they come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.data.stream import Endless, JetStream
from jetssl_cli.errors import DataError


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
    """Jets in a batch."""
    max_constituents: PositiveInt = 64
    """The first so many constituents of a jet are used."""
    num_jets: PositiveInt | None = None
    """Train on the first so many jets only."""
    num_val_jets: PositiveInt | None = 20_000
    """Validate on the first so many jets only."""
    workers: NonNegativeInt = 0
    """Processes that read; 0 reads in the training process."""

    def train_stream(self, subjet_radius: float | None = None) -> JetStream:
        """The training jets; with subjets, if their radius is given.

        Raises:
            DataError: a file cannot be read, or there are fewer jets than reading processes.
        """
        stream = JetStream(
            self.train,
            batch_size=self.batch_size,
            max_constituents=self.max_constituents,
            num_jets=self.num_jets,
            subjet_radius=subjet_radius,
        )
        if stream.num_jets < self.workers:
            raise DataError(
                f"{self.train[0]}: {stream.num_jets} jets are too few for data.workers = "
                f"{self.workers}"
            )
        return stream

    def val_stream(self, subjet_radius: float | None = None) -> JetStream:
        """The validation jets; with subjets, if their radius is given."""
        return JetStream(
            self.val,
            batch_size=self.batch_size,
            max_constituents=self.max_constituents,
            num_jets=self.num_val_jets,
            subjet_radius=subjet_radius,
        )

    def endless(self, stream: JetStream, seed: int) -> DataLoader[JetBatch]:
        """Shuffled batches without end."""
        return DataLoader(
            Endless(stream, seed),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="spawn" if self.workers else None,
        )

    def once(self, stream: JetStream) -> DataLoader[JetBatch]:
        """Every jet once, in order."""
        return DataLoader(stream, batch_size=None)
