"""Two mixed samples made from labelled jets, for a training that sees no label of a jet.

    background of the file, shuffled:  b0 b1 b2 b3 ...      signal of the file, shuffled: s0 s1 ...
    M1 = {b0, b2, ..., b(2B-2)} + {s0, ..., s(N-1)}         M2 = {b1, b3, ..., b(2B-1)}

The order is given by the seed alone. So the samples with N signal jets contain those with fewer,
and those with B background jets in each contain those with fewer. A jet is used once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jetssl_cli.config import Strict
from jetssl_cli.data import order
from jetssl_cli.data.cache import digest
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.stream import JetStream
from jetssl_cli.errors import DataError, suggest

SAMPLES = ("M2", "M1")
"""What takes the place of the classes: label 0 is M2, label 1 is M1, which holds the signal."""


class Mixture(Strict):
    """Two mixed samples of two classes."""

    signal: str
    """Class of which a few jets are hidden in M1."""
    background: str = "QCD"
    """Class of all other jets."""
    num_signal: NonNegativeInt
    """N, the signal jets in M1."""
    num_background: PositiveInt | None = None
    """B, the background jets in M1, and as many others in M2; half of all there are, if not given.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of which jets these are."""

    @model_validator(mode="after")
    def _two(self) -> Mixture:
        if self.signal == self.background:
            raise ValueError(f"signal and background are both {self.signal!r}")
        return self

    def of(self, stream: JetStream) -> Mixture:
        """The same mixture with the number of background jets that it has on these jets.

        Raises:
            DataError: no such class, or too few jets of it.
        """
        signal, background = (len(jets) for jets in self._all(stream))
        number = self.num_background or background // 2
        read = f"{stream.files[0]}: of {stream.num_jets:,} jets that are read,"
        if self.num_signal > signal:
            raise DataError(
                f"{read} {signal} are {self.signal}; the mixture needs {self.num_signal}"
            )
        if number == 0 or 2 * number > background:
            raise DataError(
                f"{read} {background} are {self.background}; the mixture needs "
                f"{2 * max(number, 1)}, half of them in M1"
            )
        return self.model_copy(update={"num_background": number})

    def scaled_to(self, stream: JetStream) -> Mixture:
        """The same share of signal, with all the background of other jets.

        Raises:
            DataError: as ``of``.
        """
        assert self.num_background is not None
        number = len(self._all(stream)[1]) // 2
        signal = round(self.num_signal * number / self.num_background)
        update = {"num_background": None, "num_signal": signal}
        return self.model_copy(update=update).of(stream)

    def chosen(self, stream: JetStream) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the jets of M1 and of M2, counted over all files of the stream."""
        assert self.num_background is not None
        signal, background = self._all(stream)
        each = 2 * self.num_background
        first = np.concatenate([background[:each:2], signal[: self.num_signal]])
        return first, background[1:each:2]

    def _all(self, stream: JetStream) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All jets of signal and background, each in the order that the seed gives."""
        classes, parts = stream.schema.classes, []
        for name in (self.signal, self.background):
            if name not in classes:
                raise DataError(
                    f"{stream.files[0]}: has no class {name!r}; {suggest(name, classes)}"
                )
        for path, size in zip(stream.files, stream.origin.sizes, strict=True):
            with JaggedFile(path) as file:
                parts.append(file.labels()[:size])
        labels = np.concatenate(parts)
        found = []
        for key, name in enumerate((self.signal, self.background)):
            jets = np.flatnonzero(labels == classes.index(name))
            found.append(order.generator(self.seed, key).permutation(jets))
        return found[0], found[1]


class MixedJets(JetsInMemory):
    """The jets of the two samples of a mixture, held in memory; their labels are the samples."""

    def __init__(self, stream: JetStream, mixture: Mixture) -> None:
        """Raises DataError if the jets of the stream do not suffice for the mixture."""
        super().__init__(stream)
        self._m1, self._m2 = mixture.of(stream).chosen(stream)
        self.schema = stream.schema.model_copy(update={"classes": SAMPLES})
        sizes = (len(self._m1) + len(self._m2),)
        self.origin = replace(self.origin, sizes=sizes, subset=digest(self._m1, self._m2))
        self.order = replace(stream.order, sizes=sizes)
        if self.num_jets < self.origin.ranks:
            raise DataError(
                f"{self.files[0]}: {self.num_jets} mixed jets are too few for {self.origin.ranks} "
                "ranks"
            )

    def _of_stream(self, held: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.sort(np.concatenate([self._m1, self._m2]))[held]

    def _parts(self) -> Iterator[JetArrays]:
        sample = np.full(self.stream.num_jets, -1, np.int16)
        sample[self._m2], sample[self._m1] = 0, 1
        first = 0
        for jets in super()._parts():
            own = sample[first : first + len(jets)]
            first += len(jets)
            yield replace(jets, labels=own).take(np.flatnonzero(own >= 0))
