"""Masked particle modelling: its equation, what it may see, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.jets import (
    SIZES,
    assert_equal_gradients,
    gradients,
    random_batch,
    random_scaling,
    randomise,
    tiny_config,
    tiny_encoder,
)
from reference.mpm import mpm_terms
from reference.training import assert_golden, generator, train

from jetssl_cli.data.tokenizer import Tokenizer
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives.masking import RandomMaskConfig, SubjetMaskConfig, random_mask
from jetssl_cli.objectives.mpm import MPMConfig

GOLDEN = Path(__file__).with_name("golden_mpm.json")
CLUSTERS = 11
HEADS = {
    "l1": {"name": "l1"},
    "tokens": {"name": "tokens", "clusters": CLUSTERS},
    "flow": {"name": "flow", "width": 12, "time_features": 4},
}
TERMS = {"l1": "features", "tokens": "token", "flow": "flow"}


def tokenizer():
    return Tokenizer(torch.randn(CLUSTERS, 7, generator=generator(2)))


def config(head="l1", **settings):
    return MPMConfig.model_validate({"head": HEADS[head], "decoder_width": 16, **settings})


def tiny_mpm(head="l1", share=0.5, **settings):
    """MPM in which every parameter differs from its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        cfg = config(head, mask=RandomMaskConfig(share=share))
        objective = cfg.build(tiny_encoder(**settings), tokenizer())
    for part in (objective.predictor, objective.head, objective.classify):
        randomise(part, 1)
    return objective


@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("head", HEADS)
def test_terms_and_gradients_are_those_of_the_equation(head, share):
    objective, batch = tiny_mpm(head, share), random_batch(SIZES)
    names = (TERMS[head], "class")

    def stacked(terms):
        assert terms.keys() == set(names)
        return torch.stack([terms[name] for name in names])

    found, grads = gradients(objective, lambda: stacked(objective.loss(batch, generator(7))))
    wanted, wanted_grads = gradients(
        objective, lambda: stacked(mpm_terms(objective, batch, generator(7)))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert_equal_gradients(grads, wanted_grads)
    assert all((gradient != 0).any() for gradient in grads.values())


@pytest.mark.parametrize("head", HEADS)
def test_hidden_constituents_do_not_leak_into_the_prediction(head, monkeypatch):
    objective, batch = tiny_mpm(head), random_batch(SIZES)
    hidden = random_mask(batch.packing, 0.5, generator(3))
    given = []
    monkeypatch.setattr(objective.head, "forward", lambda *args: given.append(args) or {})
    objective.loss(batch, generator(3))
    batch.features[hidden] += 1
    batch.ids[hidden] = (batch.ids[hidden] + 1) % 8
    objective.loss(batch, generator(3))
    (vectors, x, _), (other_vectors, other_x, _) = given
    assert torch.equal(vectors, other_vectors)
    assert torch.equal(other_x, objective.encoder.scale(batch).features[hidden])
    assert (x != other_x).any(1).all()
    batch.features[~hidden] += 1
    objective.loss(batch, generator(3))
    changed = (given[2][0] != vectors).any(1)
    assert changed.all()


def test_hidden_constituents_are_asked_for_in_the_order_of_pt(monkeypatch):
    """The answers are compared row by row with the hidden ones, first to last of each jet."""
    objective, batch = tiny_mpm(), random_batch([6, 9])
    given = []
    monkeypatch.setattr(objective.head, "forward", lambda *args: given.append(args) or {})
    objective.loss(batch, generator(3))
    vectors, x, _ = given[0]
    hidden = random_mask(batch.packing, 0.5, generator(3))
    assert torch.equal(x, objective.encoder.scale(batch).features[hidden])
    with torch.no_grad():
        objective.predictor.mask_tokens[3] += 1
    objective.loss(batch, generator(3))
    changed = (given[1][0] != vectors).any(1)
    assert changed.tolist() == [False] * 3 + [True] * 4  # one jet of 3 hidden, one of 4


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sizes", [[1, 0, 1], [0, 0], [1], []])
def test_nothing_to_hide_is_no_loss(sizes, head):
    objective = tiny_mpm(head)
    terms = objective.loss(random_batch(sizes), generator())
    assert [float(term.detach()) for term in terms.values()] == [0, 0]
    torch.stack([*terms.values()]).sum().backward()
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("head", HEADS)
def test_only_the_generator_decides(head):
    objective, batch = tiny_mpm(head), random_batch(SIZES)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = objective.loss(batch, generator(5))[TERMS[head]]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(objective.loss(batch, generator(5))[TERMS[head]], first)
    assert not torch.equal(objective.loss(batch, generator(6))[TERMS[head]], first)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("head", HEADS)
def test_terms_are_float32_in_half_precision_too(head):
    objective, batch = tiny_mpm(head), random_batch(SIZES)
    wanted = objective.loss(batch, generator())
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective.loss(batch, generator())
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, wanted[name], rtol=0.05, atol=0.05)


def test_subjets_are_hidden_whole():
    sizes = [12, 0, 1, 9, 4]
    groups = torch.cat([torch.arange(n) // 2 for n in sizes])
    batch = replace(random_batch(sizes), subjets=groups)
    objective = config(mask=SubjetMaskConfig(share=0.4)).build(tiny_encoder())
    assert objective.subjet_radius == 0.1
    assert objective.loss(batch, generator())["features"] > 0


def test_without_particle_classes_the_features_are_all_there_is():
    encoder = tiny_config().build(random_scaling(), 7, 0, 5)
    batch = replace(random_batch(SIZES), ids=torch.zeros(sum(SIZES), dtype=torch.int64))
    assert config().build(encoder).loss(batch, generator()).keys() == {"features"}


@pytest.mark.parametrize("head", HEADS)
def test_golden_losses(head):
    batches = [random_batch(SIZES, seed) for seed in range(4)]
    assert_golden(train(tiny_mpm(head), 20, batches), GOLDEN, head)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("head", HEADS)
def test_it_learns_one_batch_by_heart(head):
    torch.manual_seed(0)
    objective = config(head).build(tiny_encoder(width=32), tokenizer())
    losses = train(objective, 80, [random_batch(SIZES)], lr=5e-3, seed=4)
    assert losses[-1] < losses[0] / 2


def test_sizes_of_the_decoder_follow_the_encoder():
    predictor = MPMConfig().build(tiny_encoder(width=32, depth=3)).predictor
    assert len(predictor.blocks) == 3
    assert predictor.norm.weight.shape == (16,)
    predictor = MPMConfig(decoder_width=24, decoder_depth=1).build(tiny_encoder()).predictor
    assert len(predictor.blocks) == 1
    assert predictor.norm.weight.shape == (24,)
    with pytest.raises(ConfigError, match="decoder_width = 13: must be a multiple of"):
        MPMConfig(decoder_width=13).build(tiny_encoder())


def test_only_the_head_of_tokens_needs_a_tokenizer():
    assert [config(head).clusters for head in HEADS] == [None, CLUSTERS, None]
