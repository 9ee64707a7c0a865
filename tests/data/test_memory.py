from __future__ import annotations

import itertools
import pickle
from collections import Counter
from pathlib import Path

import pytest
from reference.numbered import ALL, flat, numbers, write_files

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.stream import JetStream


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("memory"))


def epochs(reader: JetReader, seed: int, count: int, most: int = 10) -> list[list[int]]:
    """The first epochs, each as the numbers of its jets."""
    each = reader.origin.batches_per_epoch
    found = [numbers(b, most) for b in itertools.islice(reader.forever(seed), count * each)]
    return [flat(found[start : start + each]) for start in range(0, len(found), each)]


@pytest.mark.parametrize("batch_size", [1, 10, 120, 1000])
def test_every_epoch_is_a_permutation_of_its_own(files: list[Path], batch_size: int) -> None:
    reader = JetsInMemory(JetStream(files, batch_size=batch_size))
    found = epochs(reader, 3, 4)
    assert all(sorted(epoch) == list(range(ALL)) for epoch in found)
    assert len({tuple(epoch) for epoch in [*found, *epochs(reader, 4, 4)]}) == 8
    assert found == epochs(reader, 3, 4)


def test_all_jets_are_shuffled_together(files: list[Path]) -> None:
    reader = JetsInMemory(JetStream(files, batch_size=40))
    first = Counter(number for seed in range(300) for number in numbers(next(reader.forever(seed))))
    assert set(first) == set(range(ALL))
    assert 60 < min(first.values()) <= max(first.values()) < 145  # 100 +- 8


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
@pytest.mark.parametrize("most", [None, 51, 60])
def test_one_pass_is_that_of_the_stream(
    files: list[Path], batch_size: int, most: int | None
) -> None:
    stream = JetStream(files, batch_size=batch_size, num_jets=most, max_constituents=3)
    reader = JetsInMemory(stream)
    assert reader.num_jets == stream.num_jets == (most or ALL)
    assert reader.schema == stream.schema
    assert [numbers(b, 3) for b in reader] == [numbers(b, 3) for b in stream]
    assert sorted(epochs(reader, 0, 1, 3)[0]) == sorted(set(epochs(reader, 0, 1, 3)[0]))


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_take_their_share_of_one_permutation(files: list[Path], ranks: int) -> None:
    streams = [JetStream(files, batch_size=1, rank=r, ranks=ranks) for r in range(ranks)]
    parts = [epochs(JetsInMemory(stream), 0, 2) for stream in streams]
    (first, second) = epochs(JetsInMemory(JetStream(files, batch_size=1)), 0, 2)
    share = ALL // ranks
    assert flat([part[0] for part in parts]) == first[: share * ranks]
    assert flat([part[1] for part in parts]) == second[: share * ranks]


def test_the_jets_are_read_once_and_not_sent_to_workers(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = JetsInMemory(JetStream(files, batch_size=10))
    unread = len(pickle.dumps(reader))
    before = epochs(reader, 0, 1)
    assert len(pickle.dumps(reader)) == unread
    copy = pickle.loads(pickle.dumps(reader))
    assert epochs(copy, 0, 1) == before
    monkeypatch.delattr(JaggedFile, "read")
    assert epochs(reader, 0, 1) == before
    assert flat([numbers(batch) for batch in reader]) == list(range(ALL))
