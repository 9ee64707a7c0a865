"""Classification without labels: the loss, and why it finds the signal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from reference.jets import SIZES, random_batch, tiny_encoder
from reference.training import assert_golden, train
from scipy.stats import norm

from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.objectives.cwola import CWoLaConfig

GOLDEN = Path(__file__).with_name("golden_tasks.json")


def classifier(**settings):
    config = CWoLaConfig(pool=PoolConfig(width=8, heads=2, dropout=0.0), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return config.build(tiny_encoder(), 2)


def batch_of_samples(seed):
    batch = random_batch(SIZES, seed)
    return replace(batch, labels=batch.labels % 2)


def test_the_loss_is_the_plain_cross_entropy_of_the_samples():
    objective, batch = classifier().train(), batch_of_samples(0)
    with torch.no_grad():
        found = objective.loss(batch, torch.Generator())
        log_p = objective.logits(batch).log_softmax(1)
    assert objective.logits(batch).shape == (len(SIZES), 2)
    wanted = -sum(row[label] for row, label in zip(log_p, batch.labels, strict=True)) / len(SIZES)
    torch.testing.assert_close(found["cross_entropy"], wanted)


def test_the_best_test_of_the_samples_is_the_best_test_of_the_classes():
    """The formula at the top of the module: it rises with the ratio of signal to background."""
    x = np.linspace(-4, 4, 200)
    signal, background = norm.pdf(x, 1, 0.7), norm.pdf(x, 0, 1)
    first, second = 0.1, 0.02
    samples = [f * signal + (1 - f) * background for f in (first, second)]
    ratio = signal / background
    stated = (first * ratio + 1 - first) / (second * ratio + 1 - second)
    np.testing.assert_allclose(samples[0] / samples[1], stated)
    assert np.array_equal(np.argsort(ratio), np.argsort(stated))


def test_golden_losses_without_labels():
    batches = [batch_of_samples(seed) for seed in range(4)]
    assert_golden(train(classifier(), 20, batches), GOLDEN, "cwola")
