"""Set-to-set flow matching: its equation, what it may see, and that it learns."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.jets import (
    SIZES,
    assert_equal_gradients,
    gradients,
    random_batch,
    randomise,
    tiny_encoder,
)
from reference.ssfm import flow_loss
from scipy.stats import kstest

from jetssl_cli.objectives.masking import (
    RandomMaskConfig,
    SubjetMaskConfig,
    group_mask,
    random_mask,
)
from jetssl_cli.objectives.objective import Sampling
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.runs.optim import OptimConfig

GOLDEN = Path(__file__).with_name("golden_ssfm.json")
"""Losses of 20 steps. To write it anew, after a change that is meant to change them:
``JETSSL_REGENERATE=1 python -m pytest tests/objectives/test_ssfm.py -k golden``."""


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_ssfm(hidden_share=0.5, **settings):
    """SSFM with open gates."""
    mask = RandomMaskConfig(share=hidden_share)
    config = SSFMConfig(mask=mask, decoder_width=16, time_features=4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = config.build(tiny_encoder(**settings))
    randomise(objective.decoder, 1)
    return objective


class Spy:
    """What the encoder and the decoder were given."""

    def __init__(self, objective, monkeypatch):
        encode = objective.encoder.encode

        def spy(scaled):
            self.seen = scaled
            return encode(scaled)

        monkeypatch.setattr(objective.encoder, "encode", spy)
        objective.decoder.register_forward_pre_hook(self.before_decoder)

    def before_decoder(self, module, args):
        del module
        self.xt, self.t, self.packing, self.memory = args


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_loss_and_gradients_are_those_of_the_equation(share, context):
    objective, batch = tiny_ssfm(share, context=context), random_batch(SIZES)
    found, grads = gradients(objective, lambda: objective.loss(batch, rng(7))["flow"])
    wanted, wanted_grads = gradients(objective, lambda: flow_loss(objective, batch, rng(7)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert_equal_gradients(grads, wanted_grads)
    assert all((gradient != 0).any() for gradient in grads.values())


def test_the_loss_is_a_single_term_to_minimise():
    terms = tiny_ssfm().loss(random_batch(SIZES), rng())
    assert terms.keys() == {"flow"}
    assert terms["flow"].shape == ()


def test_hidden_constituents_do_not_leak_into_the_encoder(monkeypatch):
    objective, batch = tiny_ssfm(), random_batch(SIZES)
    spy = Spy(objective, monkeypatch)
    hidden = random_mask(batch.packing, 0.5, rng(3))
    objective.loss(batch, rng(3))
    seen, xt, memory = spy.seen, spy.xt, spy.memory.tokens
    assert seen.packing.sizes.tolist() == [size - size // 2 for size in SIZES]
    assert torch.equal(seen.features, objective.encoder.scale(batch).features[~hidden])

    batch.features[hidden] += 1
    batch.ids[hidden] = (batch.ids[hidden] + 1) % 8
    objective.loss(batch, rng(3))
    assert torch.equal(spy.seen.features, seen.features)
    assert torch.equal(spy.seen.ids, seen.ids)
    assert torch.equal(spy.memory.tokens, memory)
    assert (spy.xt != xt).any(1).all()

    xt = spy.xt
    batch.features[~hidden] += 1
    objective.loss(batch, rng(3))
    assert torch.equal(spy.xt, xt)
    assert not torch.equal(spy.memory.tokens, memory)


def test_the_decoder_is_given_points_on_straight_paths(monkeypatch):
    """(1 - t) x0 + t x1, from the hidden constituent to noise, with the time of its jet."""
    objective, batch = tiny_ssfm(), random_batch(SIZES)
    spy = Spy(objective, monkeypatch)
    objective.loss(batch, rng(3))
    hidden = random_mask(batch.packing, 0.5, rng(3))
    x0 = objective.targets(objective.encoder.scale(batch).keep(hidden))
    assert torch.equal(x0[:, 7:].argmax(1), batch.ids[hidden])
    assert (x0[:, 7:].sum(1) == 1).all()
    generator = rng(3)
    random_mask(batch.packing, 0.5, generator)
    torch.randn(len(SIZES), generator=generator)
    x1 = torch.randn(x0.shape, generator=generator)
    t = spy.t[spy.packing.owner, None]
    torch.testing.assert_close(spy.xt, (1 - t) * x0 + t * x1)


def test_subjets_are_hidden_whole(monkeypatch):
    sizes = [12, 0, 1, 9, 4]
    groups = torch.cat([torch.arange(n) // 2 for n in sizes])
    batch = replace(random_batch(sizes), subjets=groups)
    with torch.random.fork_rng():
        objective = SSFMConfig(mask=SubjetMaskConfig(share=0.4)).build(tiny_encoder())
    spy = Spy(objective, monkeypatch)
    assert objective.loss(batch, rng(3))["flow"] > 0
    assert spy.packing.sizes.sum() >= 2 * (2 + 2)
    hidden = group_mask(batch.packing, groups, 0.4, rng(3))
    assert torch.equal(spy.seen.features, objective.encoder.scale(batch).features[~hidden])
    assert objective.subjet_radius == 0.1
    assert tiny_ssfm().subjet_radius is None


def test_time_is_logit_normal(monkeypatch):
    objective, batch = tiny_ssfm(), random_batch([2] * 3000)
    spy = Spy(objective, monkeypatch)
    objective.loss(batch, rng())
    assert spy.t.shape == (3000,)
    assert kstest(spy.t.logit().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("sizes", [[1, 0, 1], [0, 0], [1], []])
def test_nothing_to_hide_is_no_loss(sizes):
    objective = tiny_ssfm()
    loss = objective.loss(random_batch(sizes), rng())["flow"]
    assert loss == 0
    loss.backward()
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert all((grad == 0).all() for grad in grads)


def test_only_the_generator_decides():
    objective, batch = tiny_ssfm(), random_batch(SIZES)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = objective.loss(batch, rng(5))["flow"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(objective.loss(batch, rng(5))["flow"], first)
    assert not torch.equal(objective.loss(batch, rng(6))["flow"], first)


def test_the_loss_does_not_depend_on_the_attention_back_end():
    batch = random_batch([*SIZES, *range(40)])
    losses = [
        tiny_ssfm(attention=backend).loss(batch, rng())["flow"]
        for backend in ("padded", "reference")
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def steps(objective, num, batches, optim, seed=None):
    """Losses of a short training; with a seed, the same masks and noise in each step."""
    optimizer = optim.build(objective)
    generator = rng()
    losses = []
    for step in range(num):
        optimizer.zero_grad()
        generator = generator if seed is None else rng(seed)
        loss = objective.loss(batches[step % len(batches)], generator)["flow"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    config = SSFMConfig(decoder_width=32, time_features=4)
    objective = config.build(tiny_encoder(width=32))
    losses = steps(objective, 80, [random_batch(SIZES)], OptimConfig(lr=5e-3), seed=4)
    assert losses[-1] < losses[0] / 2


def test_golden_losses():
    batches = [random_batch(SIZES, seed) for seed in range(4)]
    losses = steps(tiny_ssfm(), 20, batches, OptimConfig(lr=1e-3))
    if os.environ.get("JETSSL_REGENERATE"):
        GOLDEN.write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses == pytest.approx(wanted, rel=1e-4)


def test_sizes_of_the_decoder_follow_the_encoder():
    objective = SSFMConfig().build(tiny_encoder(width=32, depth=3))
    assert len(objective.decoder.blocks) == 3
    assert objective.decoder.out.in_features == 16
    objective = SSFMConfig(decoder_width=24, decoder_depth=1).build(tiny_encoder())
    assert len(objective.decoder.blocks) == 1
    assert objective.decoder.out.in_features == 24


def test_the_encoder_is_what_is_exported():
    objective = tiny_ssfm()
    assert objective.exported() is objective.encoder


def test_sampling_follows_straight_paths_to_their_end(monkeypatch):
    """With the exact velocity (xt - x0) / t of straight paths, sampling ends at x0."""
    ssfm, batch = SSFMConfig().build(tiny_encoder()), random_batch(SIZES)
    scaled = ssfm.encoder.scale(batch)
    hidden = random_mask(scaled.packing, 0.5, torch.Generator().manual_seed(0))
    seen, unseen = scaled.keep(~hidden), scaled.keep(hidden)
    x0 = ssfm.targets(unseen)

    def exact(xt, t, packing, _memory):
        return (xt - x0) / t[packing.owner, None]

    monkeypatch.setattr(ssfm.decoder, "forward", exact)
    for steps in (1, 7):
        rng = torch.Generator().manual_seed(1)
        sample = ssfm.sample(seen, unseen.packing, rng, steps)
        torch.testing.assert_close(sample, x0, rtol=0, atol=1e-4)


def test_sampling_is_given_by_the_generator():
    ssfm, batch = SSFMConfig().build(tiny_encoder()), random_batch(SIZES)
    scaled = ssfm.encoder.scale(batch)
    one, two, other = (
        ssfm.sample(scaled, scaled.packing, torch.Generator().manual_seed(seed), 3)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == (scaled.packing.total, 15)


def test_generating_keeps_what_the_mask_shows(monkeypatch):
    """With the exact velocity, the hidden constituents come back in their place."""
    ssfm, batch = SSFMConfig().build(tiny_encoder()), random_batch(SIZES)
    scaled = ssfm.encoder.scale(batch)
    hidden = random_mask(batch.packing, 0.5, rng(3))
    x0 = ssfm.targets(scaled.keep(hidden))

    def exact(xt, t, packing, _memory):
        return (xt - x0) / t[packing.owner, None]

    monkeypatch.setattr(ssfm.decoder, "forward", exact)
    found = ssfm.generate(batch, rng(3), Sampling(steps=2))
    assert torch.equal(found.kept, ~hidden)
    assert torch.equal(found.made.ids, scaled.ids[hidden])
    torch.testing.assert_close(found.made.features, scaled.features[hidden], rtol=0, atol=1e-4)
    assert torch.equal(found.made.packing.sizes, scaled.keep(hidden).packing.sizes)
