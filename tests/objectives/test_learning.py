"""Each method learns from real jets: in 200 steps it beats what needs no network.

Trained on the committed sample at ``tiny``, by the shipped presets and the loop itself; measured on
jets that were not trained on. The margins are about half of what was found.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from jetssl_cli.config import Layer
from jetssl_cli.data.stream import JetStream
from jetssl_cli.runs.pretrain import load_config, load_pretrained, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

MOST = 20
"""Constituents of a jet that are used, to be quick."""
STEPS = 200


class Learned:
    """A trained objective, its losses on jets of the test file, and the scaled jets of both."""

    def __init__(self, objective, train, test):
        self.objective = objective
        rng = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            passes = [objective.loss(test, rng) for _ in range(5)]
            self.train, self.test = objective.encoder.scale(train), objective.encoder.scale(test)
        self.losses = {name: float(sum(terms[name] for terms in passes)) / 5 for name in passes[0]}


@pytest.fixture
def learn(jagged, tmp_path):
    """Pretrain with a method."""

    def all_jets(name):
        (batch,) = JetStream([jagged / name], batch_size=100_000, max_constituents=MOST)
        return batch

    def run(method, *overrides):
        files = {name: [str(jagged / f"{name}.h5")] for name in ("train", "val")}
        settings = {
            "out": str(tmp_path / "run"),
            "data": {**files, "batch_size": 32, "max_constituents": MOST},
            "optim": {"lr": 1e-3},
            "train": {"steps": STEPS, "val_every": STEPS, "probe_every": STEPS},
            "tracking": False,
        }
        cfg = load_config(method, "tiny", Layer("words", settings), overrides=overrides)
        _, _, objective = load_pretrained(pretrain(cfg))
        return Learned(objective, all_jets("train.h5"), all_jets("test.h5"))

    return run


def by_frequency(targets, others, number):
    """Cross-entropy of others, predicted by how often they are among targets."""
    counts = targets.bincount(minlength=number) + 1
    chances = (counts / counts.sum()).log()
    return float(cross_entropy(chances.expand(len(others), -1), others))


def test_mpm_beats_medians_and_frequencies(learn):
    found = learn("mpm")
    medians = found.train.features.median(0).values
    by_medians = float((found.test.features - medians).abs().mean())
    assert found.losses["features"] < 0.93 * by_medians
    assert found.losses["class"] < by_frequency(found.train.ids, found.test.ids, 8) - 0.01


def test_gpt_beats_frequencies(learn):
    found = learn("gpt", "objective.clusters=100")

    def words(scaled):
        ends = int((scaled.packing.sizes < MOST).sum())
        tokens = found.objective.tokenizer.encode(scaled.features)
        return torch.cat([tokens, torch.full((ends,), found.objective.end)])

    by_tokens = by_frequency(words(found.train), words(found.test), found.objective.end + 1)
    assert found.losses["token"] < by_tokens - 0.5
    assert found.losses["class"] < by_frequency(found.train.ids, found.test.ids, 8) - 0.01


def test_ssfm_beats_a_normal_distribution(learn):
    """Of the error of the best velocity if the hidden constituents were normally distributed.

    Along an axis in which x0 has the variance s, and x1 the variance 1, what remains of x1 - x0
    when (1-t) x0 + t x1 is known has the variance s / ((1-t)^2 s + t^2).
    """
    found = learn("ssfm")
    variances = torch.linalg.eigvalsh(found.objective.targets(found.train).T.cov().double())
    s, t = variances.clamp_min(0), torch.randn(10_000, dtype=torch.float64).sigmoid()[:, None]
    by_normal = float((s / ((1 - t) ** 2 * s + t**2)).mean())
    assert found.losses["flow"] < 0.94 * by_normal
