"""The fast bootstrap of a rejection is distributed as the plain one."""

from __future__ import annotations

import numpy as np
import pytest
from reference.bootstrap import num_passing
from scipy.stats import ks_2samp

from jetssl_cli.scores import resampling
from jetssl_cli.scores.resampling import passing


def two_runs(num_signal, num_background, *, steps=None, seed=0):
    """Two runs that agree in part; ``steps`` makes their values coarse, with ties."""
    rng = np.random.default_rng(seed)
    found = []
    for size, shift in ((num_signal, 1.0), (num_background, 0.0)):
        common = rng.normal(size=size) + shift
        found.append(np.stack([common + 0.5 * rng.normal(size=size) for _ in range(2)]))
    return [np.round(x * steps) / steps for x in found] if steps else found


def plain(signal, background, needed, replicas, seed):
    rng = np.random.default_rng(seed)
    found = np.empty((len(signal), replicas), int)
    for replica in range(replicas):
        s = rng.integers(signal.shape[1], size=signal.shape[1])
        b = rng.integers(background.shape[1], size=background.shape[1])
        for run in range(len(signal)):
            found[run, replica] = num_passing(signal[run, s], background[run, b], needed)
    return found


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("needed", [3, 500, 990, 1000])
def test_counts_are_distributed_as_those_of_the_plain_bootstrap(needed, steps):
    signal, background = two_runs(1000, 1200, steps=steps)
    fast = passing(signal, background, needed, replicas=1500, rng=np.random.default_rng(1))
    slow = plain(signal, background, needed, 1500, seed=2)
    for run in range(2):
        assert ks_2samp(fast[run], slow[run]).pvalue > 0.01
    if slow.std(axis=1).min() > 0:
        correlations = [np.corrcoef(x)[0, 1] for x in (fast, slow)]
        assert correlations[0] == pytest.approx(correlations[1], abs=0.09)
    difference = [x[0] - x[1] for x in (fast, slow)]
    assert ks_2samp(*difference).pvalue > 0.01


def test_only_few_jets_are_drawn_one_by_one(monkeypatch):
    sizes = []
    split = resampling._split

    def watched(*edges):
        cells = split(*edges)
        sizes.append(len(cells.near))
        return cells

    monkeypatch.setattr(resampling, "_split", watched)
    signal, background = two_runs(200_000, 200_000)
    passing(signal, background, 100_000, replicas=10, rng=np.random.default_rng(0))
    assert max(sizes) < 0.03 * 200_000


def test_a_run_with_itself_and_the_same_seed():
    signal, background = two_runs(500, 500)
    twice = [np.stack([x[0], x[0]]) for x in (signal, background)]
    counts = passing(*twice, 250, replicas=200, rng=np.random.default_rng(3))
    assert (counts[0] == counts[1]).all()
    assert len(set(counts[0])) > 10
    again = passing(*twice, 250, replicas=200, rng=np.random.default_rng(3))
    assert (counts == again).all()


@pytest.mark.parametrize("most", [1, 3000])
def test_parts_of_the_replicas_change_nothing_but_memory(monkeypatch, most):
    signal, background = two_runs(400, 300)
    monkeypatch.setattr(resampling, "MOST_COUNTS", most)
    counts = passing(signal, background, 200, replicas=800, rng=np.random.default_rng(4))
    slow = plain(signal, background, 200, 800, seed=5)
    assert ks_2samp(counts[0], slow[0]).pvalue > 0.01


@pytest.mark.parametrize(("signal", "background", "count"), [(0.8, 0.9, 1), (0.8, 0.7, 0)])
def test_one_jet_of_each(signal, background, count):
    one = np.array([[signal]]), np.array([[background]])
    counts = passing(*one, 1, replicas=5, rng=np.random.default_rng(0))
    assert counts.tolist() == [[count] * 5]


def test_infinite_odds():
    signal = np.array([[np.inf, np.inf, 0.0, 1.0]])
    background = np.array([[np.inf, 0.0, np.inf, 0.5]])
    counts = passing(signal, background, 2, replicas=500, rng=np.random.default_rng(0))
    slow = plain(signal, background, 2, 500, seed=1)
    assert counts.mean() == pytest.approx(slow.mean(), abs=0.2)
