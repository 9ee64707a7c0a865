"""Which constituents are hidden: how many, which, and who decides."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from jetssl_cli.batch import Packing
from jetssl_cli.objectives.masking import random_mask


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pack(sizes):
    return Packing.of(torch.tensor(sizes, dtype=torch.int64))


@given(
    sizes=st.lists(st.integers(0, 130), max_size=20),
    percent=st.integers(1, 99),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=100)
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
