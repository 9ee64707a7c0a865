"""Origins of tracks against loops over tracks, and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference.jets import SIZES, randomise, tiny_encoder
from reference.training import assert_golden, train
from reference.vertices import rows_of, true_batch
from sklearn.metrics import balanced_accuracy_score, recall_score

from jetssl_cli.objectives.track_origin import ORIGINS, TrackOriginConfig

RNG = torch.Generator()
GOLDEN = Path(__file__).with_name("golden_tasks.json")


def classifier(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = TrackOriginConfig(width=8, **settings).build(tiny_encoder(), 3)
    randomise(objective.head, 1, scale=1)
    return objective


def plain_logits(objective, batch):
    """Track by track."""
    encoded = objective.encoder(batch).constituents
    logits = []
    for rows in rows_of(batch):
        logits += [
            objective.head(torch.cat([encoded[r], encoded[list(rows)].mean(0)])) for r in rows
        ]
    return torch.stack(logits)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_loss_is_a_weighted_mean_over_tracks_of_known_origin(balance):
    objective = classifier(balance=balance).train()
    counts, batches = dict.fromkeys(range(4), 1), [true_batch(SIZES, 3, s) for s in range(2)]
    for batch in batches:
        origin = batch.truth[:, 0].tolist()
        for value in origin:
            counts |= {value: counts[value] + 1} if value >= 0 else {}
        total = weights = 0.0
        with torch.no_grad():
            found = objective.loss(batch, RNG)["cross_entropy"]
            for value, logits in zip(origin, plain_logits(objective, batch), strict=True):
                if value >= 0:
                    weight = (sum(counts.values()) / counts[value]) ** balance
                    total -= weight * float(logits.log_softmax(0)[value])
                    weights += weight
        assert float(found) == pytest.approx(total / weights, rel=1e-5)
    assert objective.counts.tolist() == list(counts.values())


def test_tracks_are_counted_in_training_alone():
    objective = classifier().eval()
    objective.loss(true_batch(SIZES), RNG)
    assert objective.counts.tolist() == [1] * len(ORIGINS)


def test_validation_finds_the_balanced_accuracy_of_scikit_learn():
    objective, batches = classifier().eval(), [true_batch(SIZES, seed=seed) for seed in range(3)]
    objective.diagnostics()
    truth, guess = [], []
    with torch.no_grad():
        for batch in batches:
            objective.loss(batch, RNG)
            known = batch.truth[:, 0] >= 0
            truth += batch.truth[known, 0].tolist()
            guess += plain_logits(objective, batch)[known].argmax(1).tolist()
    found = objective.diagnostics()
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))
    recalls = recall_score(truth, guess, average=None, labels=range(4), zero_division=0)
    assert [found[f"recall_{name}"] for name in ORIGINS] == pytest.approx(recalls.tolist())
    assert objective.diagnostics() == {}


def test_without_known_tracks_the_loss_is_zero():
    objective, batch = classifier().train(), true_batch([2, 0, 1])
    batch.truth.fill_(-1)
    loss = objective.loss(batch, RNG)["cross_entropy"]
    loss.backward()
    assert float(loss.detach()) == 0


def test_a_frozen_backbone_has_no_gradients():
    objective = classifier(frozen=True).train()
    objective.loss(true_batch(SIZES), RNG)["cross_entropy"].backward()
    assert all(p.grad is None for p in objective.encoder.parameters())
    assert all(p.grad is not None for p in objective.head.parameters())
    assert not objective.encoder.training


def test_golden_losses_of_origins():
    batches = [true_batch(SIZES, 3, seed) for seed in range(4)]
    assert_golden(train(classifier(), 20, batches, lr=1e-4), GOLDEN, "track-origin")
