"""``jetssl merge``: several jagged files to one, uniformly shuffled, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ByteSize, NonNegativeInt, PositiveInt

from jetssl_cli.config import Strict
from jetssl_cli.data.find import find
from jetssl_cli.data.jagged import JETS_PER_CHUNK, JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.place import folder_for
from jetssl_cli.data.recipe import Recipe
from jetssl_cli.data.shuffle import Buckets, Subset, checksum
from jetssl_cli.data.workers import peak_memory
from jetssl_cli.data.write import JaggedWriter, write
from jetssl_cli.errors import DataError, reason
from jetssl_cli.progress import Advance, note, progress

LEAST_BUDGET = 16 * 2**20
"""Bytes for jets below which shuffling would be all overhead."""
JETS_AT_ONCE = 20_000
"""Labels of so many jets of a file are read at a time. Others would give another subset."""
PLACE_BYTES = 16
"""Of each jet that is shuffled: its place and its number in the order of these."""


class MergeConfig(Strict):
    """What to merge, and where to."""

    sources: tuple[Path, ...]
    """Jagged files, or folders that hold them."""
    out: Path
    """The merged file."""
    seed: NonNegativeInt = 0
    """Seed of the shuffle."""
    memory: ByteSize = ByteSize(2 * 2**30)
    """Most memory that the process may use."""
    num_jets: PositiveInt | None = None
    """Keep so many jets, drawn uniformly; with ``balance`` the most that are equally many of each
    class."""
    balance: bool = False
    """Keep equally many jets of each class."""
    overwrite: bool = False
    """Replace the merged file if it is there already."""


class MergeReport(Strict):
    """What a merge did."""

    out: Path
    num_files: int
    num_jets: int
    buckets: int
    """Parts into which the shuffle was split to fit in memory."""
    checksum: str
    """Of the jets that went in, and of those that came out."""


class _Inputs:
    """The files to merge, checked to fit together."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.sources: list[str] = []
        with JaggedFile(paths[0]) as first:
            self.recipe: Recipe = first.recipe
            self.precision = first.precision
        self.per_class = np.zeros(len(self.recipe.labels.classes), np.int64)
        self.num_bytes = 0
        for path in paths:
            with JaggedFile(path) as file:
                if file.recipe.text != self.recipe.text:
                    raise DataError(
                        f"{path}: was made with the recipe {file.recipe.name!r}, {paths[0]} with "
                        f"{self.recipe.name!r} or another version of it; they cannot be merged"
                    )
                if file.precision != self.precision:
                    raise DataError(
                        f"{path}: stores {file.precision}, {paths[0]} {self.precision}; they "
                        "cannot be merged"
                    )
                self.sources += file.sources
                self.num_bytes += file.num_bytes
                for start in range(0, file.num_jets, JETS_AT_ONCE):
                    labels = file.labels(start, start + JETS_AT_ONCE)
                    self.per_class += np.bincount(labels, minlength=len(self.per_class))

    @property
    def num_jets(self) -> int:
        return int(self.per_class.sum())


def merge(cfg: MergeConfig) -> MergeReport:
    """Write all jets of the sources, or a subset of them, in one uniformly random order.

    Each jet draws a place between 0 and 1, and goes to the bucket on disk that holds this part of
    them; then each bucket is sorted by place in memory and appended to the output. So the order is
    that of independent random numbers, and every permutation is equally likely. Which jets come
    out, and in which order, depends on the seed, not on the memory or the order in which the
    sources are named. The jets that came out are read back and compared with those that went in.

    Raises:
        DataError: no sources, sources of different recipes, too few jets, too little memory or
            disk, the output is there already, or what came out is not what went in.
    """
    paths = find(cfg.sources, ".h5")
    if cfg.out.resolve() in {path.resolve() for path in paths}:
        raise DataError(f"{cfg.out}: is one of the sources; choose another name")
    if cfg.out.is_dir():
        raise DataError(f"--out {cfg.out}: is a folder; a file is needed")
    if cfg.out.exists() and not cfg.overwrite:
        raise DataError(f"{cfg.out}: is there already; choose another name or --overwrite")
    inputs = _Inputs(paths)
    wanted = _wanted(inputs, cfg)
    count, jets_per_piece = _split(inputs, int(wanted.sum()), cfg.memory)
    buckets = Buckets(cfg.out.with_name(f".{cfg.out.name}.buckets"), count, jets_per_piece)
    jets_per_read = min(jets_per_piece, JETS_AT_ONCE)
    try:
        with folder_for(cfg.out), buckets:
            total = _scatter(inputs, wanted, buckets, jets_per_read, cfg)
            verify = partial(_verify, total=total, jets_per_read=jets_per_read)
            with write(
                cfg.out, inputs.recipe, inputs.sources, precision=inputs.precision, verify=verify
            ) as writer:
                _gather(buckets, writer, total)
                writer.note_checksum(total.checksum)
    except OSError as err:
        raise DataError(f"{cfg.out}: cannot be written: {reason(err)}") from None
    return MergeReport(
        out=cfg.out,
        num_files=len(paths),
        num_jets=total.jets,
        buckets=count,
        checksum=f"{total.checksum:016x}",
    )


class _Total(NamedTuple):
    """How many jets, and their checksum."""

    jets: int
    checksum: int

    def plus(self, jets: JetArrays) -> _Total:
        return _Total(self.jets + len(jets), (self.checksum + checksum(jets)) % 2**64)


def _wanted(inputs: _Inputs, cfg: MergeConfig) -> NDArray[np.int64]:
    """Jets to keep of each class when balancing; else one number."""
    if not cfg.balance:
        most = cfg.num_jets or inputs.num_jets
        if most > inputs.num_jets:
            raise DataError(f"--num-jets {most}: the sources hold {inputs.num_jets} jets")
        return np.array([most])
    present = inputs.per_class > 0
    if not present.any():
        raise DataError("--balance: the sources hold no jets")
    share = int(inputs.per_class[present].min())
    if cfg.num_jets is not None:
        asked = cfg.num_jets // int(present.sum())
        if not 0 < asked <= share:
            raise DataError(
                f"--num-jets {cfg.num_jets} --balance: {asked} jets of each class; the sources "
                f"have between 1 and {share} of each"
            )
        share = asked
        if rest := cfg.num_jets % int(present.sum()):
            note(
                f"--num-jets {cfg.num_jets} --balance: {cfg.num_jets - rest} jets are kept, "
                f"{share} of each class"
            )
    return np.where(present, share, 0)


def _split(inputs: _Inputs, num_jets: int, memory: int) -> tuple[int, int]:
    """Number of buckets, and jets to scatter at once, so that the memory suffices.

    A bucket is held twice while it is gathered, a piece about eight times while it is scattered;
    both with room for fluctuations. Small pieces take longer: each goes to all buckets.
    """
    used = peak_memory()
    budget = memory - used
    if budget < LEAST_BUDGET:
        least = math.ceil((used + LEAST_BUDGET) / 2**20)
        asked = ByteSize(memory).human_readable()
        raise DataError(f"--memory {asked}: at least {least}MiB are needed")
    bytes_per_jet = inputs.num_bytes / max(inputs.num_jets, 1) + PLACE_BYTES
    count = math.ceil(3.5 * bytes_per_jet * num_jets / budget)
    return max(count, 1), max(int(budget / 10 / bytes_per_jet), 100)


def _scatter(
    inputs: _Inputs,
    wanted: NDArray[np.int64],
    buckets: Buckets,
    jets_per_read: int,
    cfg: MergeConfig,
) -> _Total:
    choice, place = (np.random.default_rng((cfg.seed, stream)) for stream in (0, 1))
    present = inputs.per_class if cfg.balance else np.array([inputs.num_jets])
    subset = Subset(present, wanted)
    total = _Total(0, 0)
    with progress("scatter", inputs.num_jets, "jets") as advance:
        for path in inputs.paths:
            with JaggedFile(path) as file:
                for first in range(0, file.num_jets, JETS_AT_ONCE):
                    strata = file.labels(first, first + JETS_AT_ONCE).astype(np.int64)
                    chosen = subset.draw(strata * cfg.balance, choice)
                    for start in range(0, len(strata), jets_per_read):
                        stop = min(start + jets_per_read, len(strata))
                        here = slice(*np.searchsorted(chosen, (start, stop)))
                        jets = file.read(first + start, first + stop).take(chosen[here] - start)
                        buckets.scatter(jets, place.random(len(jets)))
                        total = total.plus(jets)
                        advance(stop - start)
    return total


def _gather(buckets: Buckets, writer: JaggedWriter, total: _Total) -> None:
    with progress("gather", total.jets, "jets") as advance:
        for index in range(buckets.count):
            _append(buckets.gather(index), writer, advance)  # and it is held no longer


def _append(
    bucket: tuple[JetArrays, NDArray[np.int64]] | None, writer: JaggedWriter, advance: Advance
) -> None:
    if bucket is None:
        return
    jets, order = bucket
    for start in range(0, len(jets), JETS_PER_CHUNK):
        part = jets.take(order[start : start + JETS_PER_CHUNK])
        writer.append(part)
        advance(len(part))


def _verify(written: Path, *, total: _Total, jets_per_read: int) -> None:
    """Read back what was written.

    Raises:
        DataError: it is not what was read.
    """
    found = _Total(0, 0)
    with JaggedFile(written) as file, progress("verify", file.num_jets, "jets") as advance:
        for jets in file.chunks(jets_per_read):
            found = found.plus(jets)
            advance(len(jets))
    if found != total:
        raise DataError(
            f"{written}: {found.jets} jets with the checksum {found.checksum:016x} were written, "
            f"{total.jets} with {total.checksum:016x} were read: is the disk sound?"
        )
