from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jetssl_cli.data.order import (
    Line,
    Pools,
    Range,
    blocks,
    clamp,
    generator,
    share,
    shuffled,
)

sizes_of_files = st.lists(st.integers(0, 30), max_size=5)
block = st.integers(1, 9)
count = st.integers(1, 7)
seed = st.integers(0, 2**63)


shapes = st.tuples(
    st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) >= 3),
    st.integers(1, 13),  # jets of a batch
    st.integers(1, 3),  # ranks
    block,
    st.integers(1, 40),  # jets of a pool
    st.integers(1, 5),  # lanes
)
Shape = tuple[list[int], int, int, int, int, int]


def all_ranks(shape: Shape) -> list[Pools]:
    """The orders of all ranks that share some files."""
    sizes, batch_size, ranks, *rest = shape
    return [Pools(tuple(sizes), batch_size, rank, ranks, *rest) for rank in range(ranks)]


def jets(ranges: list[Range]) -> list[tuple[int, int]]:
    """All jets of the ranges, in order, as (file, number)."""
    return [(r.file, jet) for r in ranges for jet in range(r.start, r.stop)]


def batches(pools: Pools, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """The jets of each batch of an epoch."""
    line = pools.line(seed, epoch)
    found = []
    for number in range(pools.num_batches):
        place = pools.where(number)
        content = jets(pools.ranges(line, place.pool))
        order = pools.permutation(seed, epoch, place.pool)
        found.append([content[index] for index in order[place.start : place.stop]])
    return found


@given(sizes_of_files, block)
def test_blocks_hold_every_jet_once_in_order(sizes: list[int], block: int) -> None:
    cut = blocks(sizes, block)
    assert jets(cut) == [(file, jet) for file, size in enumerate(sizes) for jet in range(size)]
    assert all(1 <= r.size <= block for r in cut)
    short = [r.file for r in cut if r.size < block]
    assert len(short) == len(set(short))  # only the last one of a file


@given(sizes_of_files, st.integers(0, 200) | st.none())
def test_clamp_uses_the_first_jets_of_all_files_together(
    sizes: list[int], most: int | None
) -> None:
    clamped = clamp(sizes, most)
    line = [(file, jet) for file, size in enumerate(sizes) for jet in range(size)]
    assert [(file, jet) for file, size in enumerate(clamped) for jet in range(size)] == line[:most]
    assert len(clamped) == len(sizes)


@given(sizes_of_files, block, seed, st.integers(0, 100))
def test_an_epoch_is_a_permutation_given_by_its_seed(
    sizes: list[int], block: int, seed: int, epoch: int
) -> None:
    cut = blocks(sizes, block)
    order = shuffled(cut, seed, epoch)
    assert sorted(order) == sorted(cut)
    assert order == shuffled(cut, seed, epoch)


def test_epochs_and_seeds_differ() -> None:
    cut = blocks([100, 100], 4)
    orders = {tuple(shuffled(cut, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    assert tuple(cut) not in orders


def test_random_numbers_of_one_purpose_are_those_of_no_other() -> None:
    keys = [(), (0,), (1,), (0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    drawn = {generator(seed, *key).integers(2**63) for key in keys for seed in (0, 1, 2**32)}
    assert len(drawn) == 3 * len(keys)


@given(sizes_of_files, block, seed, st.data())
def test_a_cut_of_a_line_is_what_lies_between(
    sizes: list[int], block: int, seed: int, data: st.DataObject
) -> None:
    order = shuffled(blocks(sizes, block), seed, 0)
    line = Line(order)
    first = data.draw(st.integers(0, len(line)))
    last = data.draw(st.integers(first, len(line)))
    assert len(line) == sum(sizes)
    part = line.cut(first, last)
    assert jets(part) == jets(order)[first:last]
    assert all(r.size > 0 for r in part)


@given(st.integers(0, 100), count)
def test_shares_are_adjacent_equally_long_and_miss_less_than_one_each(
    total: int, count: int
) -> None:
    parts = [share(total, index, count) for index in range(count)]
    assert parts[0][0] == 0
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    assert {last - first for first, last in parts} == {total // count}
    assert 0 <= total - parts[-1][1] < count


@given(shapes, seed, st.integers(0, 50))
def test_ranks_read_different_jets_in_batches_of_equal_number_and_size(
    shape: Shape, seed: int, epoch: int
) -> None:
    orders = all_ranks(shape)
    of_ranks = [batches(pools, seed, epoch) for pools in orders]
    one = orders[0]
    each = sum(one.sizes) // one.ranks
    size = min(one.batch_size, each)
    for found in of_ranks:
        assert [len(batch) for batch in found] == [size] * (each // size)
    read = [jet for found in of_ranks for batch in found for jet in batch]
    assert len(read) == len(set(read))
    assert all(0 <= jet < one.sizes[file] for file, jet in read)
    missing = sum(one.sizes) - len(read)
    assert missing == sum(one.sizes) % one.ranks + one.ranks * (each % size)


@given(shapes, seed)
def test_pools_are_cut_from_the_share_of_the_rank_in_its_order(shape: Shape, seed: int) -> None:
    for pools in all_ranks(shape):
        line = pools.line(seed, 1)
        first, last = share(len(line), pools.rank, pools.ranks)
        whole = pools.batches_per_pool * pools.batch_size
        number = -(-(last - first) // whole)
        contents = [jets(pools.ranges(line, pool)) for pool in range(number)]
        assert [jet for pool in contents for jet in pool] == jets(line.cut(first, last))
        assert {len(pool) for pool in contents[:-1]} <= {whole}
        assert whole == pools.batch_size or whole <= pools.jets_per_pool
        assert whole + pools.batch_size > pools.jets_per_pool


@given(shapes)
def test_batches_come_from_the_pools_of_a_round_in_turn(shape: Shape) -> None:
    pools, *_ = all_ranks(shape)
    lanes, depth = pools.lanes, pools.batches_per_pool
    slices = [pools.where(number) for number in range(pools.num_batches)]
    left = {(place.pool, place.start // pools.batch_size) for place in slices}
    assert len(left) == len(slices)
    expected = []
    for first in range(0, pools.num_batches, lanes):
        for row in range(depth):
            turn = [(pool, row) for pool in range(first, first + lanes) if (pool, row) in left]
            expected += turn
    assert [(place.pool, place.start // pools.batch_size) for place in slices] == expected


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 4, 8, 16]))
def test_workers_whose_number_divides_the_lanes_share_no_pool(
    rounds: int, depth: int, workers: int
) -> None:
    pools = Pools((rounds * 16 * depth * 10,), 10, jets_per_pool=depth * 10)
    owners: dict[int, set[int]] = {}
    for number in range(pools.num_batches):
        owners.setdefault(pools.where(number).pool, set()).add(number % workers)
    assert len(owners) == rounds * 16
    assert {len(found) for found in owners.values()} == {1}


def test_pools_are_multiples_of_the_batch_size() -> None:
    depths = {1: 8000, 7: 1142, 1000: 8, 3000: 2, 8000: 1, 8001: 1, 50_000: 1}
    assert {size: Pools((10,), size).batches_per_pool for size in depths} == depths
