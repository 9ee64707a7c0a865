"""Two runs on the same jets: tests that are exact, and errors of a paired bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from reference import bootstrap
from scipy.stats import chi2

from jetssl_cli.scores.auc import placements
from jetssl_cli.scores.compare import (
    Answers,
    Pairs,
    compare_accuracy,
    compare_auc,
    compare_rejection,
)
from jetssl_cli.scores.metrics import ONE_SIGMA, discriminants, least_count

CLASSES = ("QCD", "Hbb", "Hcc")


def two_runs(num_jets, seed, strengths=(1.5, 1.2)):
    """Scores of two runs that share most of what they see."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_jets) % 3
    common = rng.normal(size=(num_jets, 3))
    found = []
    for strength in strengths:
        logits = common + 0.4 * rng.normal(size=(num_jets, 3))
        logits[np.arange(num_jets), labels] += strength
        scores = np.exp(logits)
        found.append((scores / scores.sum(axis=1, keepdims=True)).astype(np.float32))
    return *found, labels


def answers(scores, labels):
    return Answers(
        scores.argmax(axis=1) == labels,
        placements(scores, labels),
        {name: discriminants(scores, labels, CLASSES, name) for name in CLASSES[1:]},
    )


class TestMcNemar:
    def pair(self, both, wins, losses, neither):
        one = np.repeat([True, True, False, False], [both, wins, losses, neither])
        other = np.repeat([True, False, True, False], [both, wins, losses, neither])
        return compare_accuracy(one, other)

    def test_by_hand(self):
        # 1 of 5 jets goes to the worse run: 2 * (1 + 5) / 2^5
        found = self.pair(10, 4, 1, 5)
        assert found.value == pytest.approx(3 / 20)
        assert found.p == pytest.approx(12 / 32)

    def test_many_jets_are_as_in_the_chi_squared_test(self):
        found = self.pair(50_000, 5200, 5000, 30_000)
        wanted = chi2.sf((abs(5200 - 5000) - 1) ** 2 / 10_200, 1)
        assert found.p == pytest.approx(wanted, rel=1e-2)

    def test_equal_runs(self):
        assert self.pair(10, 0, 0, 5).p == 1
        assert self.pair(10, 3, 3, 5).p == 1

    def test_error_is_that_of_the_plain_bootstrap(self):
        one, other, labels = two_runs(900, seed=1)
        right = [scores.argmax(axis=1) == labels for scores in (one, other)]
        wanted = bootstrap.replicas(
            labels, lambda jets: right[0][jets].mean() - right[1][jets].mean(), 2000, seed=2
        )
        found = compare_accuracy(*right)
        assert (found.high - found.low) / 2 == pytest.approx(wanted.std(), rel=0.06)


class TestAUC:
    @pytest.mark.slow
    def test_error_is_that_of_the_plain_paired_bootstrap(self):
        one, other, labels = two_runs(600, seed=3)

        def plain(jets):
            drawn = (placements(scores[jets], labels[jets]).auc for scores in (one, other))
            return next(drawn) - next(drawn)

        values = bootstrap.replicas(labels, plain, 600, seed=4)
        found = compare_auc(placements(one, labels), placements(other, labels))
        assert found.value == pytest.approx(values.mean(), abs=3 * values.std() / 600**0.5)
        assert (found.high - found.low) / 2 == pytest.approx(values.std(), rel=0.1)
        unpaired = [placements(scores, labels).psi.std() for scores in (one, other)]
        assert (found.high - found.low) / 2 < np.hypot(*unpaired)

    @pytest.mark.slow
    def test_p_is_uniform_for_equally_good_runs(self):
        small = 0
        for seed in range(300):
            one, other, labels = two_runs(300, seed=seed, strengths=(1.0, 1.0))
            found = compare_auc(placements(one, labels), placements(other, labels))
            small += found.p < 0.2
        assert small / 300 == pytest.approx(0.2, abs=0.08)

    def test_a_run_with_itself(self):
        one, _, labels = two_runs(90, seed=5)
        found = compare_auc(placements(one, labels), placements(one, labels))
        assert (found.value, found.p) == (0, 1)


class TestRejection:
    def test_interval_is_that_of_the_plain_paired_bootstrap(self):
        one, other, labels = two_runs(3000, seed=6)
        found = compare_rejection(
            answers(one, labels), answers(other, labels), "Hbb", replicas=2000, seed=0
        )

        def plain(jets):
            counts = []
            for scores in (one, other):
                cuts = discriminants(scores[jets], labels[jets], CLASSES, "Hbb")
                needed = least_count(0.5, len(cuts.signal))
                counts.append(bootstrap.num_passing(cuts.signal, cuts.background, needed))
            return counts[1] / counts[0] if counts[0] else np.inf

        low, high = np.quantile(
            bootstrap.stratified(labels, plain, 1500, seed=7), ONE_SIGMA, method="nearest"
        )
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
        assert found.low < found.value < found.high

    def test_a_run_with_itself(self):
        one, _, labels = two_runs(300, seed=8)
        own = answers(one, labels)
        found = compare_rejection(own, own, "Hbb", replicas=100, seed=0)
        assert (found.value, found.low, found.high, found.p) == (1, 1, 1, 1)

    def test_where_no_background_passes_there_is_no_limit(self):
        _, other, labels = two_runs(300, seed=9)
        perfect = np.eye(3, dtype=np.float32)[labels]
        found = compare_rejection(
            answers(perfect, labels), answers(other, labels), "Hbb", replicas=200, seed=0
        )
        assert found.value is found.high is None
        assert found.p < 0.05
        back = compare_rejection(
            answers(other, labels), answers(perfect, labels), "Hbb", replicas=200, seed=0
        )
        assert back.value is back.low is None
        assert found.low * back.high == pytest.approx(1)
        cut = discriminants(other, labels, CLASSES, "Hbb")
        needed = least_count(0.5, len(cut.signal))
        passed = bootstrap.num_passing(cut.signal, cut.background, needed)
        assert found.low == passed / 3  # of the other's rejection, from the bound of this one
        assert back.p == found.p

    def test_where_no_background_passes_in_either_there_is_nothing_to_compare(self):
        _, _, labels = two_runs(300, seed=9)
        perfect = np.eye(3, dtype=np.float32)[labels]
        own = answers(perfect, labels)
        assert compare_rejection(own, own, "Hbb", replicas=20, seed=0) is None

    def test_a_class_without_jets(self):
        one, other, labels = two_runs(300, seed=9)
        left = np.where(labels == 1, 0, labels)
        runs = {"a": answers(one, left), "b": answers(other, left)}
        found = Pairs(runs, replicas=100, seed=0).comparison("a", "b")
        assert found.rejection["Hbb"] is None
        assert found.rejection["Hcc"] is not None
        assert (found.scores, found.to) == ("a", "b")
