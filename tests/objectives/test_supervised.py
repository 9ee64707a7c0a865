"""The classifier: what of it is trained, and on which loss."""

from __future__ import annotations

import pytest
import torch
from reference.jets import SIZES, random_batch, randomise, tiny_encoder
from torch.nn.functional import cross_entropy

from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs.optim import OptimConfig

RNG = torch.Generator()


def classifier(dropout=0.0, **settings):
    config = SupervisedConfig(pool=PoolConfig(width=8, heads=2, dropout=dropout), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = config.build(tiny_encoder(), 10)
    randomise(objective.pool, 1)
    return objective


def train(objective, steps=3):
    """A few steps; the weights of the encoder and of the pool before and after."""
    batch = random_batch(SIZES)
    parts = [objective.encoder, objective.pool]
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    optimizer = OptimConfig(lr=1e-2, weight_decay=0.1).build(objective)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.loss(batch, RNG)["cross_entropy"].backward()
        optimizer.step()
    return [
        [name for name, value in old.items() if not torch.equal(value, part.state_dict()[name])]
        for old, part in zip(before, parts, strict=True)
    ]


def test_a_frozen_backbone_is_not_trained():
    objective = classifier(frozen=True).train()
    changed_encoder, changed_pool = train(objective)
    assert changed_encoder == []
    assert set(changed_pool) == set(objective.pool.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in objective.encoder.parameters())


def test_a_frozen_backbone_stays_in_evaluation():
    objective = classifier(frozen=True)
    assert objective.train() is objective
    assert objective.training
    assert objective.pool.training
    assert not any(module.training for module in objective.encoder.modules())
    objective.eval()
    assert not objective.pool.training


def test_a_backbone_that_is_not_frozen_is_trained():
    objective = classifier(frozen=False).train()
    assert all(module.training for module in objective.modules())
    changed_encoder, changed_pool = train(objective)
    trained = {name for name, _ in objective.encoder.named_parameters()}
    assert set(changed_encoder) == trained
    assert set(changed_pool) == set(objective.pool.state_dict())


def test_the_scaling_is_never_trained():
    assert not [name for name, _ in classifier().named_parameters() if "scaling" in name]


@pytest.mark.parametrize("training", [True, False])
def test_labels_are_smoothed_in_training_alone(training):
    """Target: 0.7 on the label and 0.3 spread evenly over all ten classes, the label included."""
    objective, batch = classifier(label_smoothing=0.3).train(training), random_batch(SIZES)
    with torch.no_grad():
        found = objective.loss(batch, RNG)["cross_entropy"]
        log_p = objective.logits(batch).log_softmax(-1)
    target = torch.eye(10)[batch.labels]
    if training:
        target = 0.7 * target + 0.03
    torch.testing.assert_close(found, -(target * log_p).sum(-1).mean())
    assert torch.isclose(found, cross_entropy(log_p, batch.labels)) != training


def test_the_head_reads_all_tokens_of_the_encoder():
    objective, batch = classifier().eval(), random_batch(SIZES)
    with torch.no_grad():
        wanted = objective.pool(objective.encoder(batch))
        assert torch.equal(objective.logits(batch), wanted)
    assert wanted.shape == (len(SIZES), 10)


def test_dropout_acts_on_the_head_of_a_frozen_backbone():
    objective, batch = classifier(dropout=0.5, frozen=True), random_batch(SIZES)
    objective.train()
    assert not torch.equal(objective.logits(batch), objective.logits(batch))
    objective.eval()
    assert torch.equal(objective.logits(batch), objective.logits(batch))
