"""Which constituents are hidden: how many, which, and who decides."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from jetssl_cli.batch import Packing
from jetssl_cli.objectives.masking import group_mask, random_mask


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pack(sizes):
    return Packing.of(torch.tensor(sizes, dtype=torch.int64))


@given(
    sizes=st.lists(st.integers(0, 130), max_size=20),
    percent=st.integers(1, 99),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_exactly_the_share_of_each_jet_is_hidden(sizes, percent, seed):
    packing = pack(sizes)
    hidden = random_mask(packing, percent / 100, rng(seed))
    counts = [int(jet.sum()) for jet in hidden.split(sizes)]
    assert counts == [int(Fraction(percent, 100) * size) for size in sizes]


@pytest.mark.parametrize(("size", "share"), [(4, 0.5), (5, 0.4), (6, 0.2), (3, 0.67)])
def test_every_choice_is_equally_likely(size, share):
    jets = 3000
    hidden = random_mask(pack([size] * jets), share, rng(1)).view(jets, size)
    found = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in hidden)
    choices = list(combinations(range(size), int(Fraction(str(share)) * size)))
    assert set(found) == set(choices)
    assert chisquare([found[choice] for choice in choices]).pvalue > 1e-3


def test_the_place_in_the_batch_does_not_matter():
    """Late jets, whose keys have fewer digits left, are masked as evenly as early ones."""
    jets, size = 4000, 8
    hidden = random_mask(pack([size] * jets), 0.5, rng(2)).view(jets, size)[jets // 2 :]
    assert chisquare(hidden.sum(0)).pvalue > 1e-3


def test_nothing_to_hide():
    assert random_mask(pack([]), 0.5, rng()).tolist() == []
    assert random_mask(pack([0, 0]), 0.5, rng()).tolist() == []
    assert random_mask(pack([1, 0, 1]), 0.5, rng()).tolist() == [False, False]


def test_only_the_generator_decides():
    packing = pack([30, 0, 12])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = random_mask(packing, 0.5, rng(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(random_mask(packing, 0.5, rng(3)), first)
    assert not torch.equal(random_mask(packing, 0.5, rng(4)), first)


def grouped(sizes, seed, most=6):
    """A packing, and a random group for each constituent; in each jet all numbers occur."""
    random = np.random.default_rng(seed)
    groups = [np.unique(random.integers(0, most, n), return_inverse=True)[1] for n in sizes]
    return pack(sizes), torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *groups]))


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    percent=st.integers(1, 99),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_exactly_the_share_of_the_groups_is_hidden_and_each_whole(sizes, percent, seed):
    packing, groups = grouped(sizes, seed)
    hidden = group_mask(packing, groups, percent / 100, rng(seed))
    for mask, group in zip(hidden.split(sizes), groups.split(sizes), strict=True):
        inside, outside = set(group[mask].tolist()), set(group[~mask].tolist())
        assert not inside & outside
        assert len(inside) == int(Fraction(percent, 100) * len(inside | outside))


def test_every_choice_of_groups_is_equally_likely_however_large_they_are():
    jets, groups = 4000, torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])
    hidden = group_mask(pack([8] * jets), groups.repeat(jets), 0.5, rng(5)).view(jets, 8)
    found = Counter(tuple(groups[row].unique().tolist()) for row in hidden)
    assert set(found) == set(combinations(range(4), 2))
    assert chisquare(list(found.values())).pvalue > 1e-3


@given(sizes=st.lists(st.integers(0, 20), max_size=10), seed=st.integers(0, 100))
@settings(max_examples=50)
def test_groups_of_one_are_hidden_as_constituents_are(sizes, seed):
    packing = pack(sizes)
    hidden = group_mask(packing, packing.rank, 0.3, rng(seed))
    assert torch.equal(hidden, random_mask(packing, 0.3, rng(seed)))


def test_no_groups_and_one_group_hide_nothing():
    assert group_mask(*grouped([], 0), 0.5, rng()).tolist() == []
    assert group_mask(*grouped([0, 0], 0), 0.5, rng()).tolist() == []
    packing, groups = grouped([3, 0, 7, 1, 0], 0, most=1)
    assert not group_mask(packing, groups, 0.99, rng()).any()
