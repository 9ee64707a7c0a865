"""The reader for data that fit into memory: every epoch is one uniform shuffle of all jets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from jetssl_cli.batch import JetBatch
from jetssl_cli.data import order
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.reader import before, endless, pieces
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.state import Origin, ReaderState
from jetssl_cli.data.stream import JetStream

JETS_PER_READ = 10_000


class JetsInMemory(IterableDataset[JetBatch]):
    """The jets of a stream, read once and held; each process that reads holds all of them."""

    def __init__(self, stream: JetStream) -> None:
        super().__init__()
        self.stream = stream
        self.files: tuple[Path, ...] = stream.files
        self.schema: Schema = stream.schema
        self.origin: Origin = replace(stream.origin, in_memory=True)
        self.order = stream.order
        self._held: JetArrays | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to a worker: not the jets, which it reads itself."""
        return {**self.__dict__, "_held": None}

    @property
    def num_jets(self) -> int:
        """Jets in one pass."""
        return sum(self.origin.sizes)

    def __iter__(self) -> Iterator[JetBatch]:
        """Every jet once, in the order of the files; the last batch may be smaller."""
        jets = self.jets()
        begins = np.cumsum([0, *self.origin.sizes]).tolist()
        for part in pieces(self.order, self.origin.batch_size):
            start, stop = (
                begins[part[0].file] + part[0].start,
                begins[part[-1].file] + part[-1].stop,
            )
            yield self.to_batch(jets.between(start, stop))

    def forever(self, seed: int, start: ReaderState | None = None) -> Iterator[JetBatch]:
        """Full batches without end, from a state on; each epoch a permutation of all jets.

        The permutation is given by the seed; each rank takes its share of it. Where a rank has
        fewer jets than a batch holds, every batch holds all of them.

        Raises:
            DataError: the state is not one of this reader.
        """
        first_batch = before(self, seed, start)
        jets, size = self.jets(), self.origin.batch_size

        @lru_cache(maxsize=1)
        def permutation(epoch: int) -> NDArray[np.int64]:
            return self._permutation(seed, epoch)

        def make(epoch: int, number: int) -> JetArrays:
            return jets.take(permutation(epoch)[number * size : (number + 1) * size])

        yield from endless(make, self.origin, first_batch, self.to_batch)

    def places(self, state: ReaderState) -> NDArray[np.int64]:
        """(J, 2): of each jet of the batch that comes next, its file and its number there."""
        start = state.batch * self.origin.batch_size
        held = self._permutation(state.seed, state.epoch)[start : start + self.origin.batch_size]
        return self.stream.located(self._of_stream(held))

    def _permutation(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Which of the jets that are held this rank gives in an epoch, in order."""
        first, last = order.share(self.num_jets, self.order.rank, self.origin.ranks)
        return order.generator(seed, epoch).permutation(self.num_jets)[first:last]

    def _of_stream(self, held: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of held jets among those of the stream."""
        return held

    def to_batch(self, jets: JetArrays) -> JetBatch:
        """Some of these jets as a batch."""
        return self.stream.to_batch(jets)

    def jets(self) -> JetArrays:
        """All jets, read when they are first needed."""
        if self._held is None:
            self._held = concatenate(list(self._parts()))
        return self._held

    def _parts(self) -> Iterator[JetArrays]:
        """All jets of the stream, some at a time."""
        most = self.origin.max_constituents
        with self.stream.reading() as read:
            for part in order.blocks(self.stream.origin.sizes, JETS_PER_READ):
                jets = read(part)
                yield jets if most is None else jets.first(most)
