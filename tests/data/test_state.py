from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.numbered import by_workers, numbers, same, write_files
from torch.utils.data import DataLoader

from jetssl_cli.batch import JetBatch
from jetssl_cli.data import order
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import Endless, JetReader
from jetssl_cli.data.state import Origin, ReaderState
from jetssl_cli.data.stream import JetStream
from jetssl_cli.errors import DataError

SMALL = partial(order.Pools, jets_per_block=8, jets_per_pool=21, lanes=4)
KINDS = ["streamed", "in memory"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("state"))


def reader_of(files: list[Path], kind: str, batch_size: int = 7, **settings: Any) -> JetReader:
    """A reader with small pools: 17 batches of 7 in 6 pools, in rounds of 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "Pools", SMALL)
        stream = JetStream(files, batch_size=batch_size, **settings)
    return stream if kind == "streamed" else JetsInMemory(stream)


def first(batches: Any, count: int) -> list[JetBatch]:
    return list(itertools.islice(batches, count))


def equal(one: list[JetBatch], other: list[JetBatch]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def through_json(state: ReaderState) -> ReaderState:
    return ReaderState.from_dict(json.loads(json.dumps(state.to_dict())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
@pytest.mark.parametrize("workers", [1, 3, 4, 16])
def test_the_batches_do_not_depend_on_the_number_of_workers(
    files: list[Path], kind: str, batch_size: int, workers: int
) -> None:
    reader = reader_of(files, kind, batch_size)
    count = 60 if batch_size < 1000 else 10
    expected = first(reader.forever(1), count)
    assert equal(first(by_workers(Endless(reader, 1), workers), count), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch_size=st.integers(1, 130),
    seed=st.integers(0, 2**63 - 1),
    batches=st.integers(0, 30),
    workers=st.integers(0, 6),
    ranks=st.integers(1, 2),
)
def test_a_reader_goes_on_with_what_would_have_come_next(
    files: list[Path], kind: str, batch_size: int, seed: int, batches: int, workers: int, ranks: int
) -> None:
    for rank in range(ranks):
        reader = reader_of(files, kind, batch_size, rank=rank, ranks=ranks, max_constituents=4)
        expected = first(reader.forever(seed), batches + 12)[batches:]
        state = through_json(reader.origin.state_after(seed, batches))
        again = Endless(
            reader_of(files, kind, batch_size, rank=rank, ranks=ranks, max_constituents=4),
            seed,
            state,
        )
        assert equal(first(by_workers(again, workers) if workers else iter(again), 12), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 3])
def test_a_data_loader_goes_on_in_mid_epoch(files: list[Path], kind: str, workers: int) -> None:
    # the readers have no end, so torch stops its workers by force and may say so
    reader = reader_of(files, kind)
    expected = first(reader.forever(1), 45)
    loader = DataLoader(
        Endless(reader, 1, reader.origin.state_after(1, 22)),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    assert equal(first(loader, 23), expected[22:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_an_epoch_holds_the_jets_not_yet_seen(files: list[Path], kind: str) -> None:
    reader = reader_of(files, kind, 8)  # 15 batches hold all 120 jets
    for epoch in (0, 2):
        for batch in range(15):
            begin = reader.origin.state_after(5, epoch * 15)
            seen = [n for b in first(reader.forever(5, begin), batch) for n in numbers(b)]
            state = reader.origin.state_after(5, epoch * 15 + batch)
            rest = [n for b in first(reader.forever(5, state), 15 - batch) for n in numbers(b)]
            assert sorted(seen + rest) == list(range(120))


def test_only_the_pools_that_are_needed_are_read(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = JaggedFile.read

    def counted(file: JaggedFile, start: int, stop: int, **how: bool) -> Any:
        jets = original(file, start, stop, **how)
        read.append(len(jets))
        return jets

    monkeypatch.setattr(JaggedFile, "read", counted)
    reader = reader_of(files, "streamed")  # pools of 21, 21, 21, 21; 21, 15
    for batch, expected in [(0, 84), (8, 84), (9, 63), (10, 42), (11, 21), (12, 0)]:
        read.clear()
        first(reader.forever(0, reader.origin.state_after(0, batch)), 12 - batch)
        assert sum(read) == expected
    read.clear()
    first(reader.forever(0, reader.origin.state_after(0, 17 * 1000 + 12)), 5)
    assert sum(read) == 36
    read.clear()
    first(by_workers(Endless(reader, 0), 4), 12)
    assert sum(read) == 84  # each pool by one worker


def test_the_state_is_counted_in_batches() -> None:
    origin = Origin((50, 69), 7, None, 2)
    assert origin.batches_per_epoch == 8
    for batches in (0, 1, 7, 8, 17, 10**12):
        state = origin.state_after(3, batches)
        assert (state.seed, state.epoch * 8 + state.batch) == (3, batches)
        assert 0 <= state.batch < 8
        assert origin.batches_before(state, "x.h5") == batches
        assert through_json(state) == state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 8}, "it had batch_size = 8, expected 7"),
        ({"sizes": (50, 1, 68)}, r"it had sizes = \[50, 1, 68\], expected \[50, 1, 69\]"),
        ({"max_constituents": 64}, "it had max_constituents = 64, expected None"),
        ({"ranks": 2}, "it had ranks = 2, expected 1"),
        ({"in_memory": True}, "it had in_memory = True, expected False"),
    ],
)
def test_a_state_of_other_data_is_refused(
    files: list[Path], change: dict[str, Any], told: str
) -> None:
    reader = reader_of(files, "streamed")
    state = replace(reader.origin, **change).state_after(0, 1)
    for begin in (Endless, lambda *words: next(reader.forever(*words[1:]))):
        with pytest.raises(DataError, match=rf"0\.h5: cannot be read on .*: {told}"):
            begin(reader, 0, state)


def test_a_state_that_cannot_be_is_refused(files: list[Path]) -> None:
    reader = reader_of(files, "streamed")
    with pytest.raises(DataError, match="it had seed = 1, expected 0"):
        Endless(reader, 0, reader.origin.state_after(1, 1))
    for epoch, batch in [(0, 17), (0, -1), (-1, 0)]:
        with pytest.raises(DataError, match=rf"epoch {epoch}, batch {batch}: .* 0 to 16"):
            Endless(reader, 0, ReaderState(0, epoch, batch, reader.origin))
    good = reader.origin.state_after(0, 1).to_dict()
    with pytest.raises(DataError, match="not the state of a reader: batch = 'x'"):
        ReaderState.from_dict({**good, "batch": "x"})
    with pytest.raises(DataError, match="not the state of a reader: origin"):
        ReaderState.from_dict({name: good[name] for name in ("seed", "epoch", "batch")})
