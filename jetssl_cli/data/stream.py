"""The reader that feeds training: contiguous slices of jagged files become packed batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.data import order
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import Schema
from jetssl_cli.data.subjets import check_columns, require_fastjet, subjets
from jetssl_cli.errors import DataError

JETS_PER_BLOCK = 1_000
"""Jets read at once from one place."""
JETS_PER_POOL = 16_000
"""Jets shuffled in memory."""


def to_batch(jets: JetArrays, subjet_radius: float | None = None) -> JetBatch:
    """The same jets as tensors; with subjets, if their radius is given."""
    found = None
    if subjet_radius is not None:
        pt, deta, dphi = jets.features.T[:3]
        found = torch.from_numpy(subjets(pt, deta, dphi, jets.sizes, subjet_radius))
    return JetBatch(
        features=torch.from_numpy(jets.features),
        ids=torch.from_numpy(jets.ids).long(),
        jets=torch.from_numpy(jets.jets),
        packing=Packing.of(torch.from_numpy(jets.sizes)),
        labels=torch.from_numpy(jets.labels).long(),
        subjets=found,
    )


class JetStream(IterableDataset[JetBatch]):
    """Batches of jets from one or more files.

    Files are opened by the process that reads them, when it begins to read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        batch_size: int,
        max_constituents: int | None = None,
        num_jets: int | None = None,
        subjet_radius: float | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Look at the files; raises DataError if one cannot be read, or they do not fit.

        Raises ConfigError if subjets are wanted and FastJet is not installed.
        """
        super().__init__()
        self.files = tuple(files)
        self.batch_size = batch_size
        self.max_constituents = max_constituents
        self.subjet_radius = subjet_radius
        self.rank, self.ranks = rank, ranks
        self.schema, sizes = look(self.files)
        if subjet_radius is not None:
            require_fastjet()
            check_columns(self.schema, str(self.files[0]))
        self.sizes = order.clamp(sizes, num_jets)
        if sum(self.sizes) == 0:
            raise DataError(f"{self.files[0]}: holds no jets")

    @property
    def num_jets(self) -> int:
        """Jets in one pass."""
        return sum(self.sizes)

    def __iter__(self) -> Iterator[JetBatch]:
        """Every jet once, in the order of the files; the last batch may be smaller."""
        ranges = order.shard(order.blocks(self.sizes, self.batch_size), *self._shard())
        yield from self._batches([ranges], None)

    def forever(self, seed: int) -> Iterator[JetBatch]:
        """Full batches without end; each epoch in a new order given by the seed.

        Where there are fewer jets than a batch holds, every batch holds all of them.
        """
        index, count = self._shard()
        cut = order.blocks(self.sizes, JETS_PER_BLOCK)
        for epoch in itertools.count():
            mine = order.shard(order.shuffled(cut, seed, epoch), index, count)
            rng = np.random.default_rng((seed, epoch, index))
            yield from self._batches(order.pools(mine, JETS_PER_POOL), rng)

    def _shard(self) -> tuple[int, int]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        index, count = self.rank * workers + number, self.ranks * workers
        if self.num_jets < count:
            raise DataError(f"{self.num_jets} jets are too few for {count} reading processes")
        return index, count

    def _batches(
        self, pools: list[list[order.Range]], rng: np.random.Generator | None
    ) -> Iterator[JetBatch]:
        with ExitStack() as stack:
            files = [stack.enter_context(JaggedFile(path)) for path in self.files]
            rest: list[JetArrays] = []
            whole = False
            for pool in pools:
                parts = [files[r.file].read(r.start, r.stop) for r in pool]
                if self.max_constituents is not None:
                    parts = [part.first(self.max_constituents) for part in parts]
                jets = concatenate(parts)
                if rng is not None:
                    jets = jets.take(rng.permutation(len(jets)))
                jets = concatenate([*rest, jets])
                last = len(jets) - len(jets) % self.batch_size
                for start in range(0, last, self.batch_size):
                    part = jets.take(np.arange(start, start + self.batch_size))
                    yield to_batch(part, self.subjet_radius)
                    whole = True
                rest = [jets.take(np.arange(last, len(jets)))]
            if len(rest[0]) and (rng is None or not whole):
                yield to_batch(rest[0], self.subjet_radius)


class Endless(IterableDataset[JetBatch]):
    """``JetStream.forever`` as a data set that a DataLoader can hand to its workers."""

    def __init__(self, stream: JetStream, seed: int) -> None:
        super().__init__()
        self.stream, self.seed = stream, seed

    def __iter__(self) -> Iterator[JetBatch]:
        """Batches without end."""
        return self.stream.forever(self.seed)


def look(files: Sequence[Path]) -> tuple[Schema, list[int]]:
    """The schema that the files share, and the number of jets in each.

    Raises:
        DataError: a file cannot be read, or has other columns or classes than the first.
    """
    schema: Schema | None = None
    sizes = []
    for path in files:
        with JaggedFile(path) as file:
            if schema is not None and file.schema != schema:
                raise DataError(f"{path}: has other columns or classes than {files[0]}")
            schema = file.schema
            sizes.append(file.num_jets)
    if schema is None:
        raise DataError("no data file was given")
    return schema, sizes
