"""Jets that carry their number in every value, and what tells whether a reader gave them whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.worker import WorkerInfo

from jetssl_cli.batch import JetBatch
from jetssl_cli.data import reader, stream
from jetssl_cli.data.jagged import Precision
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import Recipe, load_recipe, schema_of
from jetssl_cli.data.write import write

RECIPE = load_recipe("jetclass")
SIZES = (50, 1, 69)
ALL = sum(SIZES)


def jets_of(first: int, count: int, recipe: Recipe = RECIPE) -> JetArrays:
    """Jets with 0 to 6 constituents; the second feature is the place in the jet."""
    schema = schema_of(recipe)
    number = np.arange(first, first + count)
    sizes = number % 7
    owner = np.repeat(number, sizes)
    features = np.repeat(owner[:, None], len(schema.constituents), axis=1)
    features[:, 1] = np.concatenate([[], *(np.arange(n) for n in sizes)])
    return JetArrays(
        features.astype(np.float32),
        (owner % 8 * bool(schema.ids)).astype(np.uint8),
        np.repeat(owner[:, None], len(schema.truth), axis=1).astype(np.int32),
        sizes.astype(np.int64),
        np.repeat(number[:, None], len(schema.jets), axis=1).astype(np.float32),
        (number % len(schema.classes)).astype(np.int16),
    )


def write_files(
    folder: Path, recipe: Recipe = RECIPE, precision: Precision = "float32"
) -> list[Path]:
    """Files of ``SIZES`` jets, numbered throughout."""
    paths = []
    for index, size in enumerate(SIZES):
        paths.append(folder / f"{index}.h5")
        jets = jets_of(sum(SIZES[:index]), size, recipe)
        object.__setattr__(jets, "features", jets.features.astype(precision))
        with write(paths[-1], recipe, [], precision=precision) as writer:
            writer.append(jets)
    return paths


def numbers(batch: JetBatch, most: int = 10, recipe: Recipe = RECIPE) -> list[int]:
    """Which jets a batch holds, after a check that each is whole."""
    chosen = batch.jets[:, 0].numpy().astype(int)
    expected = stream.to_batch(jets_of(0, ALL, recipe).take(chosen).first(most))
    assert same(batch, expected)
    assert batch.packing.total == len(batch.ids)
    assert batch.packing.longest >= int(expected.packing.sizes.max())
    found: list[int] = chosen.tolist()
    return found


def same(one: JetBatch, other: JetBatch) -> bool:
    """Whether two batches agree bit for bit."""
    names = ("features", "ids", "jets", "labels")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    pairs.append((one.packing.offsets, other.packing.offsets))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def flat(batches: list[list[int]]) -> list[int]:
    """All numbers in order."""
    return [number for batch in batches for number in batch]


@contextmanager
def worker(number: int, workers: int) -> Iterator[None]:
    """Let the readers believe that they run in this worker of a DataLoader."""
    info = WorkerInfo(id=number, num_workers=workers, seed=0, dataset=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "get_worker_info", lambda: info)
        yield


def by_workers(reader: Iterable[JetBatch], workers: int) -> Iterator[JetBatch]:
    """The batches that a DataLoader takes from its workers in turn."""
    copies, first = [], []
    for number in range(workers):
        with worker(number, workers):  # a reader looks who it is when it begins
            copies.append(iter(reader))
            first.append(next(copies[-1]))
    yield from first
    while True:
        yield from map(next, copies)
