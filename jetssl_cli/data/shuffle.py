"""Parts of a shuffle larger than memory: buckets on disk, exact subsets, and a checksum of jets."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.data.jets import FIELDS, JetArrays, concatenate


class Buckets:
    """Jets scattered over files on disk, each of which fits in memory; a context manager."""

    def __init__(self, folder: Path, count: int, jets_at_once: int) -> None:
        """So many buckets in a folder; so many jets are collected before they are written."""
        self._folder, self.count, self._jets_at_once = folder, count, jets_at_once
        self._held: list[tuple[JetArrays, NDArray[np.float64]]] = []

    def __enter__(self) -> Buckets:
        """Begin with empty buckets; what an earlier run left in the folder is removed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def scatter(self, jets: JetArrays, places: NDArray[np.float64]) -> None:
        """Put each jet into the bucket that holds its place, a number from 0 to below 1."""
        self._held.append((jets, places))
        if sum(len(held) for held, _ in self._held) >= self._jets_at_once:
            self._write()

    def _write(self) -> None:
        if not self._held:
            return
        parts, each = zip(*self._held, strict=True)
        self._held.clear()
        jets, places = concatenate(parts), np.concatenate(each)
        bucket = (places * self.count).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        ordered, places = jets.take(order), places[order]
        bounds = np.searchsorted(bucket[order], np.arange(self.count + 1))
        for index, (start, stop) in enumerate(pairwise(bounds.tolist())):
            if start < stop:
                part = ordered.between(start, stop)
                with self._path(index).open("ab") as file:
                    np.save(file, places[start:stop], allow_pickle=False)
                    for name in FIELDS:
                        np.save(file, getattr(part, name), allow_pickle=False)

    def gather(self, index: int) -> tuple[JetArrays, NDArray[np.int64]] | None:
        """All jets of a bucket as they came, and their order by place; None where there are none.

        One bucket after the other, all jets are in the order of their places, of equal ones in that
        in which they came, however many buckets there are.
        """
        self._write()
        path = self._path(index)
        if not path.exists():
            return None
        parts, places = [], []
        size = path.stat().st_size
        with path.open("rb") as file:
            while file.tell() < size:
                places.append(np.load(file, allow_pickle=False))
                parts.append(JetArrays(*(np.load(file, allow_pickle=False) for _ in FIELDS)))
        path.unlink()
        return concatenate(parts), np.argsort(np.concatenate(places), kind="stable")

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.npy"


class Subset:
    """Draws an exact number of jets of each stratum, uniformly, while jets stream past."""

    def __init__(self, present: NDArray[np.int64], wanted: NDArray[np.int64]) -> None:
        """Of each stratum ``present`` jets will come, of which ``wanted`` are taken."""
        self._present, self._wanted = present.copy(), wanted.copy()

    def draw(self, strata: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The indices of the jets to take from the next ones, given the stratum of each.

        How many of n jets are taken is hypergeometric in what is still to come, so that every
        subset of the right size is equally likely in the end. Which one comes depends on the
        generator, and on how many jets are given at a time.
        """
        chosen = []
        for stratum in np.unique(strata):
            here = np.flatnonzero(strata == stratum)
            left = self._present[stratum] - self._wanted[stratum]
            number = rng.hypergeometric(self._wanted[stratum], left, len(here))
            chosen.append(rng.choice(here, number, replace=False, shuffle=False))
            self._present[stratum] -= len(here)
            self._wanted[stratum] -= number
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def checksum(jets: JetArrays) -> int:
    """A number of 64 bits that depends on every bit of every jet, and not on the order of the jets.

    The sum, modulo 2^64, of a hash of each jet: equal multisets of jets give equal sums.
    """
    place = jets.rank.astype(np.uint64) << np.uint64(8) | jets.ids
    rows = _mix(_hash(jets.features.astype(np.float32)) ^ _mix(place) ^ _hash(jets.truth))
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(rows, dtype=np.uint64)])
    of_rows = running[jets.offsets[1:]] - running[jets.offsets[:-1]]
    labels = jets.labels.astype(np.int64).view(np.uint64)
    whole = _mix(of_rows ^ _mix(_hash(jets.jets) ^ _mix(labels)))
    return int(whole.sum(dtype=np.uint64))


def _hash(table: NDArray[np.float32] | NDArray[np.int32]) -> NDArray[np.uint64]:
    """A hash of each row."""
    result = np.zeros(len(table), np.uint64)
    for column in table.T:
        result = _mix(result ^ column.view(np.uint32))
    return result


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014, figure 16)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
