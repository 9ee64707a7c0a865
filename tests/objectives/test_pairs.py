"""Pairs and partitions against loops, scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.jets import SIZES
from reference.vertices import grouped, pairs_of, rows_of, true_batch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score

from jetssl_cli.batch import Packing
from jetssl_cli.objectives.pairs import Pairs

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@settings(max_examples=30)
@given(sizes)
def test_every_pair_of_a_jet_is_there_once_and_in_order(sizes):
    batch = true_batch(sizes)
    pairs = Pairs.of(batch.packing)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == pairs_of(batch)
    assert torch.equal(pairs.jet, batch.packing.owner[pairs.first])
    assert torch.equal(pairs.jet, batch.packing.owner[pairs.second])


@settings(max_examples=30)
@given(sizes, st.integers(0, 99), st.floats(0, 1))
def test_what_is_connected_is_one_group(sizes, seed, share):
    batch = true_batch(sizes)
    pairs, total = Pairs.of(batch.packing), batch.packing.total
    joined = torch.rand(len(pairs.first), generator=torch.Generator().manual_seed(seed)) < share
    found = pairs.components(joined)
    plain = dict(zip(pairs_of(batch), joined.tolist(), strict=True))
    assert found.tolist() == grouped(plain, total)
    edges = (pairs.first[joined].numpy(), pairs.second[joined].numpy())
    matrix = coo_matrix((np.ones(len(edges[0])), edges), shape=(total, total))
    number, label = connected_components(matrix, directed=False)
    assert len(found.unique()) == number
    assert len(np.unique(np.column_stack([found.numpy(), label]), axis=0)) == number


def test_a_long_chain_is_one_group():
    pairs = Pairs.of(Packing.of(torch.tensor([3, 200, 2])))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)) + 3
    links = {tuple(sorted(pair)) for pair in zip(order.tolist(), order[1:].tolist(), strict=False)}
    listed = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    found = pairs.components(torch.tensor([pair in links for pair in listed]))
    assert found.tolist() == [0, 1, 2, *[3] * 200, 203, 204]


@settings(max_examples=30)
@given(sizes, st.integers(0, 99), st.integers(0, 4))
def test_adjusted_rand_is_that_of_scikit_learn(sizes, seed, groups):
    rng = torch.Generator().manual_seed(seed)
    batch = true_batch(sizes)
    pairs = Pairs.of(batch.packing)
    one, other = torch.randint(0, groups + 1, (2, batch.packing.total), generator=rng)
    found = pairs.adjusted_rand(pairs.same(one), pairs.same(other))
    for rows, value in zip(rows_of(batch), found.tolist(), strict=True):
        wanted = adjusted_rand_score(one[list(rows)], other[list(rows)]) if rows else 1.0
        assert value == pytest.approx(wanted, abs=1e-12)


def test_tracks_that_do_not_count_do_not_exist():
    batch = true_batch(SIZES)
    pairs, vertex = Pairs.of(batch.packing), batch.truth[:, 0]
    guess = true_batch(SIZES, seed=5).truth[:, 0]
    known = vertex >= 0
    found = pairs.adjusted_rand(pairs.same(guess), pairs.same(vertex), pairs.both(known))
    assert 0 < int((~known).sum()) < len(known)
    for rows, value in zip(rows_of(batch), found.tolist(), strict=True):
        kept = [row for row in rows if known[row]]
        wanted = adjusted_rand_score(guess[kept], vertex[kept]) if kept else 1.0
        assert value == pytest.approx(wanted, abs=1e-12)
