"""The reader that feeds training: contiguous slices of jagged files become packed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.data import order
from jetssl_cli.data.cache import digest
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.reader import before, endless, pieces
from jetssl_cli.data.sample import look
from jetssl_cli.data.state import Origin, ReaderState
from jetssl_cli.data.subjets import check_columns, require_fastjet, subjets
from jetssl_cli.data.truth import Wanted, columns_of
from jetssl_cli.data.watch import Watch
from jetssl_cli.errors import DataError

MOST_OPEN = 64
"""Files that are open at a time: a process may have few hundred, a data set has thousands."""
MOST_HELD = order.JETS_PER_POOL * order.LANES
"""Chosen jets that are held in each process that reads, if there are no more of them."""


def to_batch(
    jets: JetArrays,
    subjet_radius: float | None = None,
    most: int | None = None,
    truth: Sequence[int] = (),
) -> JetBatch:
    """The same jets as tensors, the features in float32; with subjets, if their radius is given.

    ``most`` says after how many constituents they were cut; ``truth`` which columns of the truth
    are wanted.
    """
    found = None
    if subjet_radius is not None:
        pt, deta, dphi = jets.features.T[:3]
        found = torch.from_numpy(subjets(pt, deta, dphi, jets.sizes, subjet_radius))
    return JetBatch(
        features=torch.from_numpy(jets.features.astype(np.float32, copy=False)),
        ids=torch.from_numpy(jets.ids).long(),
        jets=torch.from_numpy(jets.jets),
        packing=Packing.of(torch.from_numpy(jets.sizes)),
        labels=torch.from_numpy(jets.labels).long(),
        subjets=found,
        most=most,
        truth=torch.from_numpy(jets.truth[:, list(truth)]).long() if truth else None,
    )


class JetStream(IterableDataset[JetBatch]):
    """Batches of jets from one or more files, of which only a few pools of jets are in memory.

    Files are opened by the process that reads them, when it comes to them.
    """

    def __init__(  # noqa: PLR0913
        self,
        files: Sequence[Path],
        *,
        batch_size: int,
        max_constituents: int | None = None,
        num_jets: int | None = None,
        subjet_radius: float | None = None,
        chosen: Sequence[NDArray[np.int64]] | None = None,
        truth: Wanted | None = None,
        watch: Watch | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Look at the files.

        Args:
            files: jagged files of one schema.
            batch_size: jets of a batch.
            max_constituents: take at most so many constituents of a jet; all if None.
            num_jets: take at most so many jets of the files taken together; all if None.
            subjet_radius: find subjets of this radius.
            chosen: of each file, the ascending numbers of the jets to take; all if None.
            truth: truth about constituents that is wanted.
            watch: of the files, if they must stay what they are.
            rank: number of this process.
            ranks: processes that share the jets.

        Raises:
            DataError: a file cannot be read, the files do not fit together or lack the wanted
                truth, or there are fewer jets than ranks.
            ConfigError: subjets are wanted and FastJet is not installed.
        """
        super().__init__()
        self.files = tuple(files)
        self.subjet_radius = subjet_radius
        self.schema, found = look(self.files)
        if subjet_radius is not None:
            require_fastjet()
            check_columns(self.schema, str(self.files[0]))
        self._chosen = chosen
        if chosen is not None:
            found = [len(jets) for jets in chosen]
        self.truth = columns_of(self.files, truth or {})
        sizes = tuple(order.clamp(found, num_jets))
        subset = None if chosen is None else digest(*chosen)
        self._watch = watch
        known = watch.fingerprints if watch else ()
        self.origin = Origin(sizes, batch_size, max_constituents, ranks, subset=subset, files=known)
        self.order = order.Pools(sizes, batch_size, rank, ranks)
        if self.num_jets == 0:
            raise DataError(f"{self.files[0]}: holds no jets")
        if self.num_jets < ranks:
            raise DataError(f"{self.files[0]}: {self.num_jets} jets are too few for {ranks} ranks")

    @property
    def num_jets(self) -> int:
        """Jets in one pass."""
        return sum(self.origin.sizes)

    def __iter__(self) -> Iterator[JetBatch]:
        """Every jet once, in the order of the files; the last batch may be smaller.

        Several ranks and workers share the jets evenly.
        """
        with self.reading() as read:
            for part in pieces(self.order, self.origin.batch_size):
                jets = concatenate([read(piece) for piece in part])
                most = self.origin.max_constituents
                yield self.to_batch(jets if most is None else jets.first(most))

    def to_batch(self, jets: JetArrays) -> JetBatch:
        """Jets of this stream as a batch, with all that was asked for."""
        return to_batch(jets, self.subjet_radius, self.origin.max_constituents, self.truth)

    def forever(self, seed: int, start: ReaderState | None = None) -> Iterator[JetBatch]:
        """Full batches without end, from a state on; each epoch in a new order given by the seed.

        Where a rank has fewer jets than a batch holds, every batch holds all of them. The batches
        do not depend on the number of workers.

        Raises:
            DataError: the state is not one of this stream.
        """
        first = before(self, seed, start)
        with self.reading() as read:
            pools = _HeldPools(self.order, read, seed, self.origin.max_constituents)
            yield from endless(pools.batch, self.origin, first, self.to_batch)

    def places(self, state: ReaderState) -> NDArray[np.int64]:
        """(J, 2): of each jet of the batch that comes next, its file and its number there."""
        where, line = self.order.where(state.batch), self.order.line(state.seed, state.epoch)
        parts = self.order.ranges(line, where.pool)
        begins = np.cumsum([0, *self.origin.sizes])
        pool = np.concatenate([begins[p.file] + np.arange(p.start, p.stop) for p in parts])
        permutation = self.order.permutation(state.seed, state.epoch, where.pool)
        return self.located(pool[permutation[where.start : where.stop]])

    def located(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(J, 2): file, and number in it, of jets counted over all that the stream reads."""
        begins = np.cumsum([0, *self.origin.sizes])
        files = np.searchsorted(begins, numbers, side="right") - 1
        inside = numbers - begins[files]
        if self._chosen is not None:
            pairs = zip(files.tolist(), inside.tolist(), strict=True)
            inside = np.array([self._chosen[file][number] for file, number in pairs], np.int64)
        return np.column_stack([files, inside])

    @contextmanager
    def reading(self) -> Iterator[Callable[[order.Range], JetArrays]]:
        """A function that reads a range; the files that it opens are closed in the end.

        A few chosen jets, which lie far from each other, are read once and held.
        """
        opened: dict[int, JaggedFile] = {}  # the one used last is the last
        held: dict[int, JetArrays] = {}

        def file_of(number: int) -> JaggedFile:
            file = opened.pop(number, None) or self._open(number)
            opened[number] = file
            if len(opened) > MOST_OPEN:
                opened.pop(next(iter(opened))).close()
            return file

        def read(part: order.Range) -> JetArrays:
            if self._watch is not None:
                self._watch.check(part.file)
            truth = bool(self.truth)
            if self._chosen is None:
                return file_of(part.file).read(part.start, part.stop, truth=truth)
            chosen = self._chosen[part.file]
            if self.num_jets > MOST_HELD:
                return file_of(part.file).take(chosen[part.start : part.stop], truth=truth)
            if part.file not in held:
                held[part.file] = file_of(part.file).take(chosen, truth=truth)
            return held[part.file].between(part.start, part.stop)

        try:
            yield read
        finally:
            for file in opened.values():
                file.close()

    def _open(self, number: int) -> JaggedFile:
        file, expected = JaggedFile(self.files[number]), self._least(number)
        if file.num_jets < expected:
            file.close()
            raise DataError(f"{file.path}: has {file.num_jets} jets, {expected} when the run began")
        return file

    def _least(self, file: int) -> int:
        """Jets that a file must have, as it had them when the run began."""
        if self._chosen is None or not len(self._chosen[file]):
            return self.origin.sizes[file]
        return int(self._chosen[file][-1]) + 1


class _HeldPools:
    """Reads a pool when a batch needs it, and holds the pools of one round."""

    def __init__(
        self,
        pools: order.Pools,
        read: Callable[[order.Range], JetArrays],
        seed: int,
        max_constituents: int | None,
    ) -> None:
        self._pools, self._read, self._seed = pools, read, seed
        self._most = max_constituents
        self._epoch = self._round = -1
        self._line = order.Line(())
        self._held: dict[int, tuple[JetArrays, NDArray[np.int64]]] = {}

    def batch(self, epoch: int, number: int) -> JetArrays:
        """Batch ``number`` of an epoch."""
        place = self._pools.where(number)
        if epoch != self._epoch:
            self._epoch, self._round = epoch, -1
            self._line = self._pools.line(self._seed, epoch)
        if place.pool // self._pools.lanes != self._round:
            self._round = place.pool // self._pools.lanes
            self._held.clear()
        if place.pool not in self._held:
            parts = [self._read(part) for part in self._pools.ranges(self._line, place.pool)]
            permutation = self._pools.permutation(self._seed, epoch, place.pool)
            self._held[place.pool] = concatenate(parts), permutation
        jets, permutation = self._held[place.pool]
        return jets.take(permutation[place.start : place.stop], self._most)
