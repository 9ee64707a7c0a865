from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetssl_cli.data.order import Range, blocks, clamp, pools, shard, shuffled

sizes_of_files = st.lists(st.integers(0, 30), max_size=5)
block = st.integers(1, 9)
count = st.integers(1, 7)
seed = st.integers(0, 2**31)


def jets(ranges: list[Range]) -> list[tuple[int, int]]:
    """All jets of the ranges, in order, as (file, number)."""
    return [(r.file, jet) for r in ranges for jet in range(r.start, r.stop)]


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


@given(sizes_of_files, block, count, seed)
def test_shards_are_disjoint_equally_long_and_miss_less_than_one_each(
    sizes: list[int], block: int, count: int, seed: int
) -> None:
    line = shuffled(blocks(sizes, block), seed, 0)
    shards = [jets(shard(line, index, count)) for index in range(count)]
    together = [jet for part in shards for jet in part]
    assert together == jets(line)[: len(together)]
    assert 0 <= len(jets(line)) - len(together) < count
    assert {len(part) for part in shards} == {len(jets(line)) // count}


@given(sizes_of_files, block, count)
def test_shards_of_shards_hold_no_empty_range(sizes: list[int], block: int, count: int) -> None:
    for index in range(count):
        assert all(r.size > 0 for r in shard(blocks(sizes, block), index, count))


@given(sizes_of_files, block, st.integers(1, 60))
def test_pools_keep_the_order_and_are_large_enough(sizes: list[int], block: int, most: int) -> None:
    cut = blocks(sizes, block)
    groups = pools(cut, most)
    assert [r for group in groups for r in group] == cut
    totals = [sum(r.size for r in group) for group in groups]
    assert all(total >= most for total in totals[:-1])
    assert all(total < most + block for total in totals)
    assert totals[-1] > 0 or not cut
