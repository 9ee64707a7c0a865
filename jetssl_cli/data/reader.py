"""What every reader of jets is, and how reading processes share its batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from jetssl_cli.batch import JetBatch
from jetssl_cli.data import order
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.state import Origin, ReaderState, require_same_files
from jetssl_cli.errors import DataError


@runtime_checkable
class JetReader(Protocol):
    """What gives the jets of some files batch by batch."""

    files: tuple[Path, ...]
    schema: Schema
    origin: Origin

    @property
    def num_jets(self) -> int:
        """Jets in one pass."""

    def __iter__(self) -> Iterator[JetBatch]:
        """Every jet once, in the order of the files; the last batch may be smaller."""

    def forever(self, seed: int, start: ReaderState | None = None) -> Iterator[JetBatch]:
        """Shuffled batches without end, from a state on."""

    def places(self, state: ReaderState) -> NDArray[np.int64]:
        """(J, 2): of each jet of the batch that comes next, its file and its number there."""


class Endless(IterableDataset[JetBatch]):
    """``forever`` of a reader as a data set that a DataLoader can hand to its workers."""

    def __init__(self, reader: JetReader, seed: int, start: ReaderState | None = None) -> None:
        """Raises DataError if the state is not one of this reader with this seed."""
        super().__init__()
        self.reader, self.seed, self.start = reader, seed, start
        before(reader, seed, start)

    def __iter__(self) -> Iterator[JetBatch]:
        """Batches without end."""
        return self.reader.forever(self.seed, self.start)


def before(reader: JetReader, seed: int, start: ReaderState | None) -> int:
    """How many batches lie before a state of this reader.

    Raises:
        DataError: the state is not one of this reader with this seed.
    """
    if start is None:
        return 0
    name = str(reader.files[0])
    if start.seed != seed:
        raise DataError(
            f"{name}: cannot be read on from where the run was: it had seed = {start.seed}, "
            f"expected {seed}"
        )
    batches = reader.origin.batches_before(start, name)
    require_same_files(reader.files, reader.origin.files, start.origin.files)
    return batches


def endless(
    make: Callable[[int, int], JetArrays],
    origin: Origin,
    first: int,
    finish: Callable[[JetArrays], JetBatch],
) -> Iterator[JetBatch]:
    """The batches that this process gives, where the reader begins with batch ``first``.

    ``make`` is given an epoch and the number of a batch in it. A DataLoader takes one batch from
    each of its workers in turn, so worker w of W makes the batches first + w, first + w + W, ...
    """
    number, workers = worker()
    for batch in itertools.count(first + number, workers):
        yield finish(make(*divmod(batch, origin.batches_per_epoch)))


def pieces(pools: order.Pools, batch_size: int) -> Iterator[list[order.Range]]:
    """What this process reads for each batch of one pass in order."""
    number, workers = worker()
    index, count = pools.rank * workers + number, pools.ranks * workers
    line = order.Line(order.blocks(pools.sizes, max(pools.sizes)))
    if len(line) < count:
        raise DataError(f"{len(line)} jets are too few for {count} reading processes")
    first, last = order.share(len(line), index, count)
    for start in range(first, last, batch_size):
        yield line.cut(start, min(start + batch_size, last))


def worker() -> tuple[int, int]:
    """Number of this reading process, and how many there are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
