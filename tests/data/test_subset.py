"""Subsets of labelled jets: balanced, nested, and the same for every reader."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.numbered import ALL, SIZES, flat, numbers, write_files

from jetssl_cli.data import stream as stream_module
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import FIELDS
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.subset import balanced, deal, draw
from jetssl_cli.errors import DataError

labels_of = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.int16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("subset"))


def one_by_one(counts: np.ndarray, cards: int) -> np.ndarray:
    """The definition of ``deal``."""
    dealt = np.zeros_like(counts)
    for pile in itertools.cycle(range(len(counts))):
        if cards == 0:
            return dealt
        if dealt[pile] < counts[pile]:
            dealt[pile] += 1
            cards -= 1
    raise AssertionError


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), data=st.data())
def test_cards_are_dealt_in_turns(counts: list[int], data: st.DataObject) -> None:
    cards = data.draw(st.integers(1, sum(counts)))
    piles = np.array(counts)
    np.testing.assert_array_equal(deal(piles, cards), one_by_one(piles, cards))


@given(labels=labels_of, seed=st.integers(0, 2**40))
def test_subsets_are_nested_and_balanced(labels: np.ndarray, seed: int) -> None:
    before: set[int] = set()
    for num_jets in range(1, len(labels) + 1):
        chosen = balanced(labels, 5, num_jets, seed)
        assert len(chosen) == num_jets
        assert (np.diff(chosen) > 0).all()
        assert before < set(chosen)
        before = set(chosen)
        taken = np.bincount(labels[chosen], minlength=5)
        open_classes = taken < np.bincount(labels, minlength=5)
        if open_classes.any():  # no class has two more than one that is not used up
            assert taken.max() - taken[open_classes].min() <= 1


def test_every_jet_of_a_class_is_drawn_as_often() -> None:
    labels = np.repeat(np.arange(2, dtype=np.int16), (10, 40))
    found = Counter(i for seed in range(800) for i in balanced(labels, 2, 10, seed))
    assert set(found) == set(range(50))
    assert 330 < min(found[i] for i in range(10)) <= max(found[i] for i in range(10)) < 470
    assert 60 < min(found[i] for i in range(10, 50)) <= max(found[i] for i in range(10, 50)) < 145


def test_the_jets_that_a_file_gives(files: list[Path]) -> None:
    with JaggedFile(files[0]) as file:
        whole = file.read()
        for chosen in ([0, 1, 2], [len(whole) - 1], [0, 40, 41], [], range(0, len(whole), 3)):
            jets = np.array(chosen, dtype=np.int64)
            for name in FIELDS:
                found, wanted = (getattr(a, name) for a in (file.take(jets), whole.take(jets)))
                np.testing.assert_array_equal(found, wanted)


def epoch(reader: JetReader, seed: int = 3) -> list[int]:
    each = reader.origin.batches_per_epoch
    return flat([numbers(batch) for batch in itertools.islice(reader.forever(seed), each)])


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_readers_give_the_subset_and_nothing_else(files: list[Path], batch_size: int) -> None:
    chosen = draw(files, 40, 5)
    starts = np.cumsum([0, *SIZES[:-1]])
    wanted = sorted(
        int(i) for part, start in zip(chosen, starts, strict=True) for i in part + start
    )
    assert len(wanted) == 40
    stream = JetStream(files, batch_size=batch_size, chosen=chosen)
    for reader in (stream, JetsInMemory(stream)):
        assert reader.num_jets == 40
        assert flat([numbers(batch) for batch in reader]) == wanted
        assert sorted(epoch(reader)) == wanted
        assert epoch(reader) != wanted or batch_size == 1000


def test_a_small_subset_is_read_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies scattered over the files; what a batch holds is the same if it is read each time."""
    reader, taken = JetStream(files, batch_size=5, chosen=draw(files, 40, 5)), []
    right = JaggedFile.take
    monkeypatch.setattr(
        JaggedFile, "take", lambda *args, **more: taken.append(0) or right(*args, **more)
    )
    found = [numbers(batch) for batch in itertools.islice(reader.forever(3), 40)]
    assert len(taken) <= len(files)
    monkeypatch.setattr(stream_module, "MOST_HELD", 39)
    assert [numbers(batch) for batch in itertools.islice(reader.forever(3), 40)] == found
    assert len(taken) > 2 * len(files)


def test_ranks_share_a_subset(files: list[Path]) -> None:
    chosen = draw(files, 30, 5)
    streams = [JetStream(files, batch_size=5, chosen=chosen, rank=r, ranks=3) for r in range(3)]
    parts = [epoch(stream) for stream in streams]
    assert [len(part) for part in parts] == [10, 10, 10]
    assert len(set(flat(parts))) == 30


def test_a_state_of_another_subset_is_refused(files: list[Path]) -> None:
    """Of the same size, too."""
    one, other = (JetStream(files, batch_size=5, chosen=draw(files, 30, s)) for s in (1, 2))
    same = tuple(map(len, draw(files, 30, 1)))
    state = one.origin.state_after(0, 3)
    assert [numbers(b) for b in itertools.islice(one.forever(0, state), 2)] == [
        numbers(b) for b in itertools.islice(one.forever(0), 3, 5)
    ]
    stranger = replace(other.origin, sizes=same)
    with pytest.raises(DataError, match="subset"):
        one.origin.batches_before(stranger.state_after(0, 3), "x")


def test_only_the_first_jets_are_drawn_from(files: list[Path]) -> None:
    chosen = draw(files, 20, 0, among=SIZES[0] + 1)
    assert sum(map(len, chosen)) == 20
    assert all(len(part) == 0 for part in chosen[2:])
    with pytest.raises(DataError, match=f"{ALL + 1} jets are wanted, there are {ALL}"):
        draw(files, ALL + 1, 0)
