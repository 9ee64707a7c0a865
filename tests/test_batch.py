"""The packed batch against plain loops over lists of jets."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.jets import random_batch

from jetssl_cli.batch import Packing

sizes_of_jets = st.lists(st.integers(0, 6), max_size=8)
quick = settings(max_examples=60)


def pack(sizes):
    return Packing.of(torch.tensor(sizes, dtype=torch.int64))


@given(sizes=sizes_of_jets)
@quick
def test_jets_lie_end_to_end(sizes):
    packing = pack(sizes)
    offsets, owner, rank = [0], [], []
    for jet, size in enumerate(sizes):
        offsets.append(offsets[-1] + size)
        owner += [jet] * size
        rank += list(range(size))
    assert packing.offsets.tolist() == offsets
    assert (packing.total, packing.longest) == (sum(sizes), max(sizes, default=0))
    assert packing.num_jets == len(sizes)
    assert packing.sizes.tolist() == sizes
    assert packing.owner.tolist() == owner
    assert packing.rank.tolist() == rank


@given(sizes=sizes_of_jets, data=st.data())
@quick
def test_keep_is_the_packing_of_the_kept_rows(sizes, data):
    jets = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in sizes]
    chosen = torch.tensor([keep for jet in jets for keep in jet], dtype=torch.bool)
    kept = pack(sizes).keep(chosen)
    wanted = pack([sum(jet) for jet in jets])
    assert torch.equal(kept.offsets, wanted.offsets)
    assert (kept.total, kept.longest) == (wanted.total, wanted.longest)


@given(jets=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
@quick
def test_join_lays_the_rows_of_both_into_each_jet(jets):
    one, other = pack([a for a, _ in jets]), pack([b for _, b in jets])
    both, first, second = one.join(other)
    rows = [
        row for jet, (a, b) in enumerate(jets) for row in [("one", jet)] * a + [("other", jet)] * b
    ]
    assert both.sizes.tolist() == [a + b for a, b in jets]
    assert [rows[row] for row in first] == [("one", jet) for jet in one.owner.tolist()]
    assert [rows[row] for row in second] == [("other", jet) for jet in other.owner.tolist()]
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(rows)))


@given(sizes=sizes_of_jets, seed=st.integers(0, 100))
@quick
def test_keep_takes_the_rows_and_leaves_the_jets(sizes, seed):
    batch = random_batch(sizes)
    chosen = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(seed)) < 0.5
    assert batch.keep(chosen).subjets is None
    kept = replace(batch, subjets=torch.arange(sum(sizes))).keep(chosen)
    rows = [row for row in range(sum(sizes)) if chosen[row]]
    assert kept.subjets.tolist() == rows
    assert torch.equal(kept.features, batch.features[rows])
    assert torch.equal(kept.ids, batch.ids[rows])
    assert torch.equal(kept.packing.owner, batch.packing.owner[rows])
    assert torch.equal(kept.jets, batch.jets)
    assert torch.equal(kept.labels, batch.labels)


def test_moving_changes_nothing_but_the_device():
    batch = replace(random_batch([2, 0, 3]), subjets=torch.tensor([0, 1, 1, 0, 0]))
    moved = batch.to(torch.device("cpu"))
    meta = batch.to(torch.device("meta"))
    for name in ("features", "ids", "jets", "labels", "subjets"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
        assert getattr(meta, name).is_meta
    assert meta.packing.offsets.is_meta
    assert (meta.packing.total, meta.packing.longest) == (5, 3)
