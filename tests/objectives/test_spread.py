"""The term that keeps jets apart."""

from __future__ import annotations

import math

import pytest
import torch
from reference.jets import SIZES, random_batch, tiny_encoder
from reference.spread import koleo_loss

from jetssl_cli.objectives.spread import koleo, register_means


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_is_the_plain_one():
    vectors = torch.randn(15, 4, generator=rng()).requires_grad_()
    found, wanted = koleo(vectors).mean(), koleo_loss(list(vectors))
    torch.testing.assert_close(found, wanted)
    for one, other in zip(*(torch.autograd.grad(x, vectors) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_vector_of_a_jet_is_the_mean_of_its_registers():
    encoded = tiny_encoder()(random_batch(SIZES))
    bounds = encoded.packing.offsets.tolist()
    wanted = torch.stack([encoded.tokens[first : first + 3].mean(0) for first in bounds[:-1]])
    torch.testing.assert_close(register_means(encoded), wanted)


def test_jets_that_are_alike_do_not_break_the_spread():
    vectors = torch.ones(3, 4, requires_grad=True)
    losses = koleo(vectors)
    assert losses.tolist() == pytest.approx([-math.log(1e-8)] * 3)
    losses.sum().backward()
    assert vectors.grad.isfinite().all()
    one = torch.ones(1, 4, requires_grad=True)
    koleo(one).sum().backward()
    assert koleo(one).tolist() == [0]
    assert (one.grad == 0).all()


def test_half_precision_does_not_mistake_the_nearest():
    vectors = torch.ones(40, 8) + 0.02 * torch.randn(40, 8, generator=rng())
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo(vectors)
    assert torch.equal(found, koleo(vectors))


def test_descent_along_the_spread_drives_the_nearest_apart():
    vectors = torch.randn(20, 3, generator=rng()).requires_grad_()
    before = torch.pdist(torch.nn.functional.normalize(vectors.detach(), dim=-1)).min()
    optimizer = torch.optim.SGD([vectors], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        koleo(vectors).mean().backward()
        optimizer.step()
    after = torch.pdist(torch.nn.functional.normalize(vectors.detach(), dim=-1)).min()
    assert after > 2 * before
