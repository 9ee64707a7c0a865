from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, roc_auc_score

from jetssl_cli.scores import metrics
from jetssl_cli.scores.auc import auc, placements
from jetssl_cli.scores.metrics import UNDEFINED, WORKING_POINTS, Estimate, Rejection

QCD_HBB = ("QCD", "Hbb")


def accuracy(scores, labels):
    return metrics.accuracy(scores.argmax(axis=1) == labels)


def auc_ovo(scores, labels):
    return auc(placements(scores, labels))


def rejection(scores, labels, classes, signal, *, background="QCD", efficiency=0.5, replicas=200):
    found = metrics.discriminants(scores, labels, classes, signal, background)
    rng = np.random.default_rng(0)
    return found and metrics.rejection(found, efficiency, replicas=replicas, rng=rng)


def softmax_scores(num_jets, num_classes, *, seed, strength=1.0, steps=None):
    """Random scores that know something of the labels; ``steps`` makes them coarse, with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_jets)
    logits = rng.normal(size=(num_jets, num_classes))
    logits[np.arange(num_jets), labels] += strength
    if steps:
        logits = np.round(logits * steps) / steps
    scores = np.exp(logits)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32), labels


def two_classes(background, signal):
    """Scores and labels of QCD and Hbb jets from their discriminants."""
    d = np.array([*background, *signal], dtype=np.float32)
    labels = np.repeat([0, 1], [len(background), len(signal)])
    return np.stack([1 - d, d], axis=1), labels


def auc_of_pairs(scores, labels):
    """The definition of the AUC, one comparison of two jets at a time."""
    areas = []
    for a, b in itertools.permutations(sorted(set(labels.tolist())), 2):
        p = scores[labels == a, a][:, None].astype(float)
        q = scores[labels == b, a][None, :].astype(float)
        areas.append(((p > q) + 0.5 * (p == q)).mean())
    return np.mean(areas)


jets = st.integers(2, 5).flatmap(
    lambda num_classes: st.lists(
        st.tuples(
            st.lists(st.integers(1, 4), min_size=num_classes, max_size=num_classes),
            st.integers(0, num_classes - 1),
        ),
        min_size=1,
        max_size=30,
    )
)


def unpack(drawn):
    weights = np.array([weight for weight, _ in drawn], dtype=np.float64)
    scores = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores, np.array([label for _, label in drawn])


def test_working_points_are_those_of_part_in_its_order():
    assert list(WORKING_POINTS.items()) == [
        ("Hbb", 0.5),
        ("Hcc", 0.5),
        ("Hgg", 0.5),
        ("H4q", 0.5),
        ("Hqql", 0.99),
        ("Zqq", 0.5),
        ("Wqq", 0.5),
        ("Tbqq", 0.5),
        ("Tbl", 0.995),
    ]


class TestAccuracy:
    def test_wilson_interval_by_hand(self):
        scores, labels = two_classes([0.1, 0.2, 0.9], [0.8])
        # 3 of 4 right, z = 1: (3 + 1/2 -+ sqrt(3 * 1 / 4 + 1/4)) / 5
        figure = accuracy(scores, labels)
        assert (figure.value, figure.low, figure.high) == pytest.approx((0.75, 0.5, 0.9))

    def test_all_right_and_all_wrong_keep_an_uncertainty(self):
        scores, labels = two_classes([0.1] * 9, [])
        right, wrong = accuracy(scores, labels), accuracy(scores, 1 - labels)
        assert (right.value, right.low, right.high) == (1.0, pytest.approx(0.9), 1.0)
        assert (wrong.value, wrong.low, wrong.high) == (0.0, 0.0, pytest.approx(0.1))

    def test_a_tie_goes_to_the_first_class(self):
        scores, labels = two_classes([0.5], [0.5])
        assert accuracy(scores, labels).value == 0.5

    def test_no_jets(self):
        assert accuracy(np.zeros((0, 3), np.float32), np.zeros(0, int)) == UNDEFINED

    def test_interval_covers_as_often_as_it_says(self):
        rng = np.random.default_rng(5)
        covered = 0
        for _ in range(2000):
            scores, labels = two_classes((rng.random(100) < 0.3).astype(float), [])
            figure = accuracy(scores, labels)
            covered += figure.low <= 0.7 <= figure.high
        assert covered / 2000 == pytest.approx(0.683, abs=0.04)


class TestAUC:
    @pytest.mark.parametrize("steps", [None, 1])
    @pytest.mark.parametrize("num_classes", [3, 10])
    def test_equals_sklearn(self, num_classes, steps):
        scores, labels = softmax_scores(2000, num_classes, seed=1, steps=steps)
        if steps:
            assert len(np.unique(scores[:, 0])) < 1500
        expected = roc_auc_score(labels, scores, multi_class="ovo", average="macro")
        assert auc_ovo(scores, labels).value == pytest.approx(expected, abs=1e-9)

    def test_two_classes_equal_sklearn_binary(self):
        scores, labels = softmax_scores(500, 2, seed=2)
        expected = roc_auc_score(labels, scores[:, 1])
        assert auc_ovo(scores, labels).value == pytest.approx(expected, abs=1e-3)
        assert auc_ovo(scores, labels).value == pytest.approx(auc_of_pairs(scores, labels))

    @given(jets)
    def test_equals_its_definition_with_ties_and_empty_classes(self, drawn):
        scores, labels = unpack(drawn)
        figure = auc_ovo(scores, labels)
        if len(set(labels.tolist())) < 2:
            assert figure == UNDEFINED
            return
        assert figure.value == pytest.approx(auc_of_pairs(scores, labels), abs=1e-12)
        if figure.low is not None:
            assert 0 <= figure.low <= figure.value <= figure.high <= 1

    @given(jets, st.randoms(use_true_random=False))
    def test_order_of_jets_and_of_classes_is_irrelevant(self, drawn, random):
        scores, labels = unpack(drawn)
        rows = random.sample(range(len(labels)), len(labels))
        classes = random.sample(range(scores.shape[1]), scores.shape[1])
        place = np.argsort(classes)
        shuffled = auc_ovo(scores[rows][:, classes], place[labels[rows]])
        for ours, theirs in zip(
            vars(auc_ovo(scores, labels)).values(), vars(shuffled).values(), strict=True
        ):
            assert ours == (None if theirs is None else pytest.approx(theirs, abs=1e-9))

    def test_absent_classes_are_left_out(self):
        scores, labels = softmax_scores(300, 4, seed=3)
        present = labels != 2
        left = auc_ovo(scores[present], labels[present])
        fewer = np.delete(scores[present], 2, axis=1)
        relabelled = np.where(labels[present] > 2, labels[present] - 1, labels[present])
        assert left == auc_ovo(fewer, relabelled)

    def test_perfect_separation_claims_no_uncertainty(self):
        assert auc_ovo(*two_classes([0.1, 0.2, 0.3], [0.7, 0.8])) == Estimate(1.0, None, None)

    def test_constant_scores_are_one_half(self):
        assert auc_ovo(*two_classes([0.5] * 3, [0.5] * 4)) == Estimate(0.5, None, None)

    def test_one_jet(self):
        assert auc_ovo(*two_classes([0.5], [])) == UNDEFINED
        assert auc_ovo(*two_classes([0.1, 0.5], [0.3])) == Estimate(0.5, None, None)

    def test_delong_by_hand(self):
        # Two classes with p_1 = 1 - p_0 have A(0|1) = A(1|0): DeLong's variance of one area.
        scores, labels = two_classes([0.125, 0.375, 0.625], [0.25, 0.5, 0.75, 0.875])
        signal_placements, background_placements = [1 / 3, 2 / 3, 1, 1], [1, 3 / 4, 1 / 2]
        variance = np.var(signal_placements, ddof=1) / 4 + np.var(background_placements, ddof=1) / 3
        figure = auc_ovo(scores, labels)
        assert figure.value == pytest.approx(0.75)
        assert figure.low == pytest.approx(0.75 - variance**0.5)
        assert figure.high == pytest.approx(min(0.75 + variance**0.5, 1))

    @pytest.mark.slow
    def test_error_agrees_with_bootstrap(self):
        scores, labels = softmax_scores(600, 4, seed=4, strength=1.0)
        members = [np.flatnonzero(labels == c) for c in range(4)]
        rng = np.random.default_rng(0)
        values = []
        for _ in range(500):
            drawn = np.concatenate([rng.choice(jets, len(jets)) for jets in members])
            values.append(auc_ovo(scores[drawn], labels[drawn]).value)
        figure = auc_ovo(scores, labels)
        assert (figure.high - figure.low) / 2 == pytest.approx(np.std(values), rel=0.12)


class TestRejection:
    def test_by_hand(self):
        scores, labels = two_classes([0.1, 0.2, 0.3, 0.6, 0.9], [0.4, 0.5, 0.7, 0.8])
        found = rejection(scores, labels, QCD_HBB, "Hbb", efficiency=0.5)
        # Threshold 0.7 keeps 2 of 4; 1 of 5 passes
        assert (found.value, found.efficiency, found.bound) == (5.0, 0.5, False)
        assert found.low < 5
        assert found.high is None  # in one replica of three no background jet passes

    def test_tied_scores_enter_together(self):
        scores, labels = two_classes([0.1, 0.7, 0.7, 0.2], [0.1, 0.7, 0.7, 0.9])
        found = rejection(scores, labels, QCD_HBB, "Hbb", efficiency=0.5)
        assert (found.value, found.efficiency) == (2.0, 0.75)

    def test_rounding_of_the_share_costs_no_jet(self):
        scores, labels = two_classes([0.5], np.linspace(0.1, 0.9, 100))
        assert 0.07 * 100 > 7
        assert rejection(scores, labels, QCD_HBB, "Hbb", efficiency=0.07).efficiency == 0.07

    def test_no_background_passes(self):
        scores, labels = two_classes([0.1] * 100, [0.8, 0.9])
        found = rejection(scores, labels, QCD_HBB, "Hbb")
        assert found.bound
        assert found.value == found.low == pytest.approx(100 / 3)
        assert found.high is None

    def test_all_background_passes(self):
        found = rejection(*two_classes([0.5] * 4, [0.5] * 3), QCD_HBB, "Hbb")
        assert found == Rejection(1.0, 1.0, 1.0, 1.0, bound=False)

    def test_one_jet_of_each(self):
        found = rejection(*two_classes([0.9], [0.8]), QCD_HBB, "Hbb", efficiency=0.995)
        assert (found.value, found.efficiency, found.bound) == (1.0, 1.0, False)

    @pytest.mark.parametrize("present", [([0.5], []), ([], [0.5])])
    def test_a_class_without_jets(self, present):
        assert rejection(*two_classes(*present), QCD_HBB, "Hbb") is None

    @pytest.mark.parametrize("signal", ["Hcc", "QCD"])
    def test_a_class_that_is_not_a_signal_of_the_file(self, signal):
        assert rejection(*two_classes([0.1], [0.5]), QCD_HBB, signal) is None

    def test_other_classes_do_not_count(self):
        scores, labels = softmax_scores(3000, 4, seed=6)
        names = ("Hcc", "QCD", "Zqq", "Hbb")
        chosen = np.isin(labels, [1, 3])
        everything = rejection(scores, labels, names, "Hbb")
        assert everything == rejection(scores[chosen], labels[chosen], names, "Hbb")
        assert everything != rejection(scores, labels, names, "Zqq")

    def test_discriminant_is_the_ratio_not_the_score(self):
        # By p_Hbb alone the first jet would be above the second; by p/(p + p_QCD) it is below.
        scores = np.array([[0.45, 0.5, 0.05], [0.05, 0.3, 0.65]], dtype=np.float32)
        found = rejection(scores, np.array([0, 1]), ("QCD", "Hbb", "Hcc"), "Hbb")
        assert found.bound

    def test_scores_that_saturate_are_still_ordered(self):
        scores = np.array([[1e-20, 1], [1e-25, 1], [1e-30, 1]], dtype=np.float32)
        found = rejection(scores, np.array([0, 1, 1]), QCD_HBB, "Hbb")
        assert found.bound  # as p/(p + p_QCD) all three round to 1

    def test_background_without_any_qcd_score_ties_at_the_top(self):
        scores, labels = two_classes([1.0, 0.2], [1.0, 0.3])
        assert rejection(scores, labels, QCD_HBB, "Hbb").value == 2.0

    def test_zero_over_zero_favours_neither(self):
        scores = np.array([[0, 0, 1], [0.4, 0.6, 0], [0.6, 0.4, 0]], dtype=np.float32)
        names = ("QCD", "Hbb", "Hcc")
        below = rejection(scores, np.array([0, 1, 0]), names, "Hbb")
        assert below.bound
        above = rejection(scores, np.array([0, 0, 1]), names, "Hbb")
        assert above.value == 1

    @given(jets, st.sampled_from([0.3, 0.5, 0.99, 0.995, 1.0]))
    def test_equals_its_definition(self, drawn, efficiency):
        scores, labels = unpack(drawn)
        names = [f"c{c}" for c in range(scores.shape[1])]
        assume({0, 1} <= set(labels.tolist()))
        found = rejection(scores, labels, names, "c1", background="c0", efficiency=efficiency)
        p = scores.astype(float)
        d = p[:, 1] / (p[:, 1] + p[:, 0])
        signal, background = d[labels == 1], d[labels == 0]
        cut = max(t for t in signal if np.mean(signal >= t) >= efficiency)
        passing = np.sum(background >= cut)
        assert found.efficiency == np.mean(signal >= cut) >= efficiency
        assert found.bound == (passing == 0)
        assert found.value == pytest.approx(len(background) / (passing or 3))
        assert found.low <= found.value
        assert found.high is None or found.value <= found.high

    def test_interval_is_that_of_the_plain_bootstrap(self):
        rng = np.random.default_rng(7)
        scores, labels = two_classes(rng.beta(2, 4, 1500), rng.beta(4, 2, 1000))

        def plain(jets):
            found = metrics.discriminants(scores[jets], labels[jets], QCD_HBB, "Hbb")
            cut = np.sort(found.signal)[-metrics.least_count(0.8, len(found.signal))]
            return 1 / np.mean(found.background >= cut)

        ours = rejection(scores, labels, QCD_HBB, "Hbb", efficiency=0.8, replicas=2000)
        low, high = np.quantile(bootstrap.replicas(labels, plain, 2000, seed=8), metrics.ONE_SIGMA)
        width = high - low
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.08 * width)

    def test_the_seed_decides(self):
        scores, labels = softmax_scores(2000, 2, seed=1)
        found = metrics.discriminants(scores, labels, QCD_HBB, "Hbb")
        results = [
            metrics.rejection(found, 0.5, replicas=100, rng=np.random.default_rng(seed))
            for seed in (1, 1, 2)
        ]
        assert results[0] == results[1]
        assert results[0].value == results[2].value
        assert results[0] != results[2]


class TestPlacements:
    @given(jets)
    def test_single_and_double_precision_agree(self, drawn):
        scores, labels = unpack(drawn)
        one, other = (placements(scores.astype(kind), labels) for kind in "fd")
        assert one.auc == (None if other.auc is None else pytest.approx(other.auc, abs=1e-12))
        np.testing.assert_allclose(one.psi, other.psi, atol=1e-12)

    def test_minus_zero_is_zero(self):
        scores = np.array([[1, 0.0], [1, -0.0], [1, 0.0]], np.float32)
        assert auc_ovo(scores, np.array([0, 1, 1])).value == 0.5

    def test_they_sum_to_the_area(self):
        scores, labels = softmax_scores(500, 3, seed=9, steps=2)
        found = placements(scores, labels)
        sums = [found.psi[labels == c].mean() for c in range(3)]
        assert sum(sums) / 2 == pytest.approx(found.auc)

    @pytest.mark.slow
    def test_accuracy_and_auc_have_the_error_of_the_plain_bootstrap(self):
        scores, labels = softmax_scores(600, 3, seed=11, strength=1.0)

        def plain(jets):
            return (
                np.mean(scores[jets].argmax(axis=1) == labels[jets]),
                auc_ovo(scores[jets], labels[jets]).value,
            )

        errors = bootstrap.replicas(labels, plain, 600, seed=12).std(axis=0)
        figures = accuracy(scores, labels), auc_ovo(scores, labels)
        halves = [(figure.high - figure.low) / 2 for figure in figures]
        assert halves == pytest.approx(errors, rel=0.1)


def calibration(scores, labels, replicas=100):
    right = scores.argmax(axis=1) == labels
    rng = np.random.default_rng(0)
    return metrics.calibration(scores.max(axis=1), right, replicas=replicas, rng=rng)


class TestCalibration:
    @given(jets)
    def test_equals_its_definition(self, drawn):
        scores, labels = unpack(drawn)
        plain = bootstrap.expected_calibration_error(scores, labels, metrics.BINS)
        found = calibration(scores, labels)
        assert found.error.value == pytest.approx(plain, abs=1e-6)
        assert found.error.low <= found.error.value <= found.error.high
        assert sum(found.num_jets) == len(labels)

    def test_curve_equals_sklearn(self):
        scores, labels = softmax_scores(3000, 4, seed=1)
        right = scores.argmax(axis=1) == labels
        truth, mean = calibration_curve(right, scores.max(axis=1), n_bins=metrics.BINS)
        found = calibration(scores, labels)
        assert [x for x in found.accuracy if x is not None] == pytest.approx(truth)
        assert [x for x in found.confidence if x is not None] == pytest.approx(mean)

    def test_by_hand(self):
        # confidences 0.9 (right), 0.9 (wrong), 0.6 (right): |0.5 - 0.9| * 2/3 + |1 - 0.6| * 1/3
        scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], np.float32)
        assert calibration(scores, np.array([0, 1, 1])).error.value == pytest.approx(0.4)

    def test_error_is_that_of_the_plain_bootstrap(self):
        scores, labels = softmax_scores(2000, 3, seed=5, strength=3.0)

        def plain(jets):
            return bootstrap.expected_calibration_error(scores[jets], labels[jets], metrics.BINS)

        figure = calibration(scores, labels, replicas=2000).error
        wanted = bootstrap.replicas(labels, plain, 400, seed=6).std()
        assert (figure.high - figure.low) / 2 == pytest.approx(wanted, rel=0.12)


class TestConfusion:
    @given(jets)
    def test_equals_sklearn(self, drawn):
        scores, labels = unpack(drawn)
        number = scores.shape[1]
        answers = scores.argmax(axis=1)
        wanted = confusion_matrix(labels, answers, labels=range(number))
        assert (metrics.confusion(answers, labels, number) == wanted).all()
