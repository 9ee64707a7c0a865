from __future__ import annotations

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.numbered import ALL, RECIPE, SIZES, flat, jets_of, numbers, worker, write_files
from torch.utils.data import DataLoader

from jetssl_cli.data import order
from jetssl_cli.data import stream as stream_module
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import Endless, JetReader
from jetssl_cli.data.recipe import load_recipe, schema_of
from jetssl_cli.data.sample import look
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.write import write
from jetssl_cli.errors import DataError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 jets, pools of 20 (or a batch), 4 pools at a time."""
    small = partial(order.Pools, jets_per_block=8, jets_per_pool=20, lanes=4)
    monkeypatch.setattr(order, "Pools", small)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 120, 1000])
def test_one_pass_gives_every_jet_once_in_order(files: list[Path], batch_size: int) -> None:
    stream = JetStream(files, batch_size=batch_size)
    assert stream.num_jets == ALL
    for _ in range(2):
        batches = [numbers(batch) for batch in stream]
        assert flat(batches) == list(range(ALL))
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        assert len(batches) == -(-ALL // batch_size)


def epochs(reader: JetReader, seed: int, count: int, *, most: int = 10) -> list[list[int]]:
    """The first epochs, each as the numbers of its jets."""
    size = min(reader.origin.batch_size, reader.num_jets)
    per_epoch = reader.num_jets // size
    batches = itertools.islice(reader.forever(seed), count * per_epoch)
    found = [numbers(batch, most) for batch in batches]
    assert {len(batch) for batch in found} == {size}
    starts = range(0, len(found), per_epoch)
    return [flat(found[start : start + per_epoch]) for start in starts]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batch_size", [1, 10, 40, 120])
def test_every_epoch_is_a_permutation_of_its_own(files: list[Path], batch_size: int) -> None:
    found = epochs(JetStream(files, batch_size=batch_size), 3, 4)
    for epoch in found:
        assert sorted(epoch) == list(range(ALL))
    assert len(set(map(tuple, found))) == 4
    assert list(range(ALL)) not in found


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batch_size", [7, 50, 119])
def test_what_does_not_fill_a_batch_is_left_out_of_an_epoch(
    files: list[Path], batch_size: int
) -> None:
    for epoch in epochs(JetStream(files, batch_size=batch_size), 0, 3):
        assert len(epoch) == ALL - ALL % batch_size
        assert max(Counter(epoch).values()) == 1


@pytest.mark.usefixtures("small_blocks")
def test_fewer_jets_than_a_batch(files: list[Path]) -> None:
    found = epochs(JetStream(files, batch_size=1000), 0, 3)
    assert [sorted(epoch) for epoch in found] == [list(range(ALL))] * 3
    assert len(set(map(tuple, found))) == 3


def test_the_jets_of_a_pool_are_mixed(files: list[Path]) -> None:
    (epoch,) = epochs(JetStream(files, batch_size=10), 0, 1)
    steps = np.abs(np.diff(epoch))
    assert (steps == 1).mean() < 0.2  # neighbours in the file are not neighbours in the epoch
    assert {number // 40 for number in epoch[:20]} == {0, 1, 2}


@pytest.mark.usefixtures("small_blocks")
def test_the_seed_gives_the_batches(files: list[Path]) -> None:
    stream = JetStream(files, batch_size=10)
    assert epochs(stream, 5, 2) == epochs(JetStream(files, batch_size=10), 5, 2)
    assert epochs(stream, 5, 2) != epochs(stream, 6, 2)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("most", [1, 49, 50, 51, 60, 119, 120, 500])
def test_only_the_first_jets_are_used(files: list[Path], most: int) -> None:
    stream = JetStream(files, batch_size=1, num_jets=most)
    used = list(range(min(most, ALL)))
    assert stream.num_jets == len(used)
    assert flat([numbers(batch) for batch in stream]) == used
    for epoch in epochs(stream, 0, 2):
        assert sorted(epoch) == used


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("most", [1, 3, 6])
def test_only_the_first_constituents_are_used(files: list[Path], most: int) -> None:
    stream = JetStream(files, batch_size=10, max_constituents=most)
    once = [numbers(batch, most) for batch in stream]
    assert flat(once) == list(range(ALL))
    (epoch,) = epochs(stream, 0, 1, most=most)
    assert sorted(epoch) == list(range(ALL))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("most", [None, 3])
def test_a_batch_says_where_jets_were_cut(files: list[Path], most: int | None) -> None:
    stream = JetStream(files, batch_size=7, max_constituents=most)
    for reader in (stream, JetsInMemory(stream)):
        for batch in (next(iter(reader)), next(reader.forever(0))):
            assert batch.most == most
            assert batch.to(torch.device("cpu")).most == most
            assert batch.keep(torch.ones(batch.packing.total, dtype=torch.bool)).most == most


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_read_different_jets(files: list[Path], ranks: int) -> None:
    streams = [JetStream(files, batch_size=1, rank=r, ranks=ranks) for r in range(ranks)]
    share = ALL // ranks
    once = [flat([numbers(batch) for batch in stream]) for stream in streams]
    for epoch in range(2):
        batches = [
            itertools.islice(stream.forever(0), epoch * share, (epoch + 1) * share)
            for stream in streams
        ]
        parts = [flat([numbers(batch) for batch in part]) for part in batches]
        for of_ranks in (parts, once):
            assert {len(part) for part in of_ranks} == {share}
            assert max(Counter(flat(of_ranks)).values()) == 1


def test_a_loader_without_workers_gives_what_the_stream_gives(files: list[Path]) -> None:
    stream = JetStream(files, batch_size=10)
    loader = DataLoader(Endless(stream, 4), batch_size=None)
    found = flat([numbers(batch) for batch in itertools.islice(loader, 24)])
    assert found == flat(epochs(stream, 4, 2))


def test_too_few_jets_for_the_readers(files: list[Path]) -> None:
    with pytest.raises(DataError, match=r"0\.h5: 2 jets are too few for 3 ranks"):
        JetStream(files, batch_size=1, num_jets=2, ranks=3)
    stream = JetStream(files, batch_size=1, num_jets=2)
    with (
        worker(1, 3),
        pytest.raises(DataError, match="2 jets are too few for 3 reading processes"),
    ):
        next(iter(stream))


def test_workers_share_one_pass(files: list[Path]) -> None:
    stream = JetStream(files, batch_size=7)
    for reader in (stream, JetsInMemory(stream)):
        parts = []
        for number in range(3):
            with worker(number, 3):
                parts.append(flat([numbers(batch) for batch in reader]))
        assert flat(parts) == list(range(ALL))
        assert {len(part) for part in parts} == {ALL // 3}


@pytest.mark.parametrize("recipe", ["btag", "btag_reduced"])
def test_half_precision_truth_and_jets_without_particle_classes(
    tmp_path: Path, recipe: str
) -> None:
    other = load_recipe(recipe)
    assert schema_of(other).truth
    stream = JetStream(write_files(tmp_path, other, "float16"), batch_size=9, max_constituents=4)
    for reader in (stream, JetsInMemory(stream)):
        once = [numbers(batch, 4, other) for batch in reader]
        assert flat(once) == list(range(ALL))
        for batch in itertools.islice(reader.forever(0), 30):
            assert len(numbers(batch, 4, other)) == 9
            assert batch.features.dtype == torch.float32


def test_a_file_that_was_replaced_by_a_shorter_one(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(files[0].read_bytes())
    stream = JetStream([path], batch_size=5)
    with write(path, RECIPE, []) as writer:
        writer.append(jets_of(0, 49))
    with pytest.raises(DataError, match=r"x\.h5: has 49 jets, 50 when the run began"):
        next(stream.forever(0))


def test_files_that_do_not_fit(files: list[Path], tmp_path: Path) -> None:
    other = load_recipe("jetclass2")
    with write(tmp_path / "other.h5", other, []) as writer:
        writer.append(jets_of(0, 3))
    with pytest.raises(DataError, match=r"other\.h5: has other columns or classes than .*0\.h5"):
        JetStream([*files, tmp_path / "other.h5"], batch_size=1)
    with pytest.raises(DataError, match="no data file was given"):
        JetStream([], batch_size=1)
    (tmp_path / "again.h5").symlink_to(files[0])
    for twice in ([*files, files[0]], [files[0], tmp_path / "again.h5"]):
        with pytest.raises(DataError, match=rf"{twice[-1]}: is named twice"):
            JetStream(twice, batch_size=1)
    assert look([files[0], files[0]], apart=False)[1] == [SIZES[0]] * 2
    with pytest.raises(DataError, match=r"absent\.h5: no such file"):
        JetStream([files[0], tmp_path / "absent.h5"], batch_size=1)
    with write(tmp_path / "none.h5", RECIPE, []) as writer:
        writer.append(jets_of(0, 0))
    with pytest.raises(DataError, match=r"none\.h5: holds no jets"):
        JetStream([tmp_path / "none.h5"], batch_size=1)
    assert look(files) == (schema_of(RECIPE), list(SIZES))


def test_a_file_that_is_damaged_later_is_named(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(files[0].read_bytes())
    stream = JetStream([path], batch_size=1)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"x\.h5: not a readable HDF5 file"):
        next(iter(stream))


def test_few_files_are_open_at_a_time(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is read does not depend on how many."""

    def read() -> tuple[list[list[int]], int]:
        reader, most = JetStream(files, batch_size=7), 0
        found = []
        for batch in itertools.chain(reader, itertools.islice(reader.forever(1), 40)):
            found.append(numbers(batch))
            links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
            most = max(most, sum(link.resolve() in set(files) for link in links))
        return found, most

    wanted, all_open = read()
    assert all_open == len(files) > 2
    monkeypatch.setattr(stream_module, "MOST_OPEN", 2)
    assert read() == (wanted, 2)


def test_files_are_closed_when_the_reader_stops(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(files[0].read_bytes())
    batches = JetStream([path], batch_size=1).forever(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    with write(path, RECIPE, []) as writer:
        writer.append(jets_of(0, 1))
    assert JetStream([path], batch_size=1).num_jets == 1
