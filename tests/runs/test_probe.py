"""Signs of collapse, on clouds whose answer is known."""

from __future__ import annotations

import pytest
import torch
from reference.jets import SIZES, random_batch, tiny_encoder

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.encoder import Encoded
from jetssl_cli.runs.probe import Probe, effective_rank, feature_std, jet_vectors


def rng():
    return torch.Generator().manual_seed(0)


def test_effective_rank_of_known_clouds():
    line = torch.randn(500, 1, generator=rng()) * torch.randn(1, 16, generator=rng()) + 3
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.randn(50_000, 16, generator=rng())) == pytest.approx(16, abs=0.01)
    plane = torch.zeros(2000, 16)
    plane[:, [2, 7]] = torch.randn(2000, 2, generator=rng())
    assert effective_rank(plane) == pytest.approx(2, abs=0.01)


def test_effective_rank_is_the_exponential_of_an_entropy():
    cloud = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    cloud = torch.cat([cloud, -cloud])  # centred, with known singular values
    shares = torch.tensor([3.0, 2.0, 1.0]) / 6
    assert effective_rank(cloud) == pytest.approx(float((-shares * shares.log()).sum().exp()))


def test_effective_rank_of_numbers_that_are_not_finite_is_no_number():
    """A training that has diverged must come to its own message, not to that of the SVD."""
    cloud = torch.ones(4, 3)
    cloud[2, 1] = torch.nan
    assert effective_rank(cloud) != effective_rank(cloud)


def test_collapsed_to_a_point():
    point = torch.ones(40, 8)
    assert effective_rank(point) == pytest.approx(1)
    assert feature_std(point) == 0
    assert feature_std(point[:1]) == 0


def test_feature_std():
    cloud = torch.randn(50_000, 2, generator=rng()) * torch.tensor([1.0, 3.0]) + 7
    assert feature_std(cloud) == pytest.approx(2, rel=0.01)


def test_jet_vectors_are_means():
    tokens = torch.randn(4, 3, generator=rng())
    encoded = Encoded(tokens, Packing.of(torch.tensor([3, 0, 1])), torch.arange(4))
    wanted = torch.stack([tokens[:3].mean(0), torch.zeros(3), tokens[3]])
    torch.testing.assert_close(jet_vectors(encoded), wanted)


def test_no_gradient_of_the_probe_reaches_the_encoder():
    encoder, probe, batch = tiny_encoder(), Probe(16, 10), random_batch(SIZES)
    probe.loss(encoder, batch).backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in probe.parameters())
