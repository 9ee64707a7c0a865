"""Vertex finding against loops over jets and pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.jets import SIZES, randomise, take, tiny_encoder
from reference.training import assert_golden, train
from reference.vertices import grouped, pairs_of, rows_of, true_batch
from sklearn.metrics import adjusted_rand_score
from torch.nn.functional import logsigmoid

from jetssl_cli.objectives.pairs import Pairs
from jetssl_cli.objectives.vertex import THRESHOLDS, VertexConfig

RNG = torch.Generator()
GOLDEN = Path(__file__).with_name("golden_tasks.json")


def finder(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = VertexConfig(width=8, **settings).build(tiny_encoder(), 3)
    randomise(objective.project, 2)
    randomise(objective.head, 1, scale=1)
    return objective


def plain_logit(objective, one, other, mean):
    """The score of two tracks from their vectors and the mean over their jet."""
    x, y = (objective.project(torch.cat([z, mean])) for z in (one, other))
    return objective.head(torch.cat([x + y, (x - y).abs()]))[0]


def plain_logits(objective, batch):
    """Scores of all pairs: (i, j) -> s, jet by jet and pair by pair."""
    encoded = objective.encoder(batch).constituents
    found = {}
    for rows in rows_of(batch):
        mean = encoded[list(rows)].mean(0)
        for j in rows:
            for i in range(rows.start, j):
                found[i, j] = plain_logit(objective, encoded[i], encoded[j], mean)
    return found


def test_the_loss_is_the_mean_over_all_pairs_of_known_vertex():
    objective, batch = finder().train(), true_batch(SIZES)
    vertex, wanted = batch.truth[:, 0], []
    with torch.no_grad():
        for (i, j), logit in plain_logits(objective, batch).items():
            if vertex[i] >= 0 and vertex[j] >= 0:
                wanted.append(-logsigmoid(logit if vertex[i] == vertex[j] else -logit))
        found = objective.loss(batch, RNG)
    assert found.keys() == {"pairs"}
    assert 0 < len(wanted) < len(pairs_of(batch))
    torch.testing.assert_close(found["pairs"], torch.stack(wanted).mean())


def test_a_pair_is_judged_the_same_in_either_order():
    objective, batch = finder().eval(), true_batch(SIZES)
    pairs = Pairs.of(batch.packing)
    turned = replace(pairs, first=pairs.second, second=pairs.first)
    with torch.no_grad():
        found = objective.pair_logits(batch, pairs)
        torch.testing.assert_close(found, objective.pair_logits(batch, turned))
    assert found.std() > 0.1


def test_jets_do_not_know_each_other():
    objective, batch = finder().eval(), true_batch(SIZES)
    with torch.no_grad():
        together = objective.pair_logits(batch, Pairs.of(batch.packing))
        each = [take(batch, [jet]) for jet in range(len(SIZES))]
        alone = [objective.pair_logits(jet, Pairs.of(jet.packing)) for jet in each]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_validation_takes_the_threshold_with_the_best_adjusted_rand_index():
    objective, batches = finder().eval(), [true_batch(SIZES, seed=seed) for seed in range(3)]
    objective.diagnostics()
    indices = {threshold: [] for threshold in THRESHOLDS}
    single = []
    with torch.no_grad():
        for batch in batches:
            objective.loss(batch, RNG)
            vertex = batch.truth[:, 0]
            scores = {p: float(s.sigmoid()) for p, s in plain_logits(objective, batch).items()}
            for threshold, found in indices.items():
                joined = {pair: score > threshold for pair, score in scores.items()}
                group = torch.tensor(grouped(joined, len(vertex)))
                for rows in rows_of(batch):
                    known = [row for row in rows if vertex[row] >= 0]
                    if len(known) >= 2:
                        found.append(adjusted_rand_score(vertex[known], group[known]))
            for rows in rows_of(batch):
                known = [row for row in rows if vertex[row] >= 0]
                if len(known) >= 2:
                    single.append(len(vertex[known].unique()) == 1)
    means = {threshold: sum(found) / len(found) for threshold, found in indices.items()}
    best = max(means, key=means.get)
    assert len(set(means.values())) > 3
    found = objective.diagnostics()
    assert found["adjusted_rand"] == pytest.approx(means[best])
    assert found["threshold"] == best
    assert float(objective.threshold) == pytest.approx(best)
    assert found["adjusted_rand_of_one_vertex"] == pytest.approx(sum(single) / len(single))
    assert objective.diagnostics() == {}  # begins anew, and leaves the threshold
    assert float(objective.threshold) == pytest.approx(best)


def test_the_threshold_is_a_part_of_the_weights():
    assert "threshold" in finder().state_dict()
    assert not [name for name in finder().state_dict() if "totals" in name]


def test_without_a_pair_the_loss_is_zero_and_has_gradients():
    objective, batch = finder().train(), true_batch([1, 0, 1])
    loss = objective.loss(batch, RNG)["pairs"]
    loss.backward()
    assert float(loss.detach()) == 0
    heads = [*objective.project.parameters(), *objective.head.parameters()]
    assert all(parameter.grad is not None for parameter in heads)


def test_golden_losses_of_vertices():
    batches = [true_batch(SIZES, seed=seed) for seed in range(4)]
    assert_golden(train(finder(), 20, batches, lr=1e-4), GOLDEN, "vertex")
