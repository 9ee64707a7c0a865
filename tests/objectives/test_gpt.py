"""Next-particle prediction: its equation, causality, ends of jets, and what it generates."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.gpt import gpt_terms
from reference.jets import (
    SIZES,
    assert_equal_gradients,
    gradients,
    random_batch,
    random_scaling,
    randomise,
    take,
    tiny_config,
    tiny_encoder,
)
from reference.training import assert_golden, generator, train
from torch.nn.functional import one_hot

from jetssl_cli.data.tokenizer import Tokenizer
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives.gpt import GPTConfig
from jetssl_cli.objectives.objective import Sampling

GOLDEN = Path(__file__).with_name("golden_gpt.json")
CLUSTERS = 11


def tokenizer():
    return Tokenizer(torch.randn(CLUSTERS, 7, generator=generator(2)))


def tiny_gpt(decoder=2, **settings):
    """GPT in which every parameter differs from its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = tiny_encoder(**{"causal": True, "registers": 2, **settings})
        cfg = GPTConfig(clusters=CLUSTERS, decoder_depth=decoder)
        objective = cfg.build(encoder, tokenizer())
    for part in (objective.decoder, objective.token, objective.classify):
        if part is not None:
            randomise(part, 1)
    return objective


def stacked(terms):
    assert terms.keys() == {"token", "class"}
    return torch.stack([terms["token"], terms["class"]])


@pytest.mark.parametrize("most", [None, 7, 12, 100])
@pytest.mark.parametrize("registers", [1, 2])
@pytest.mark.parametrize("decoder", [0, 1, 2])
def test_terms_and_gradients_are_those_of_the_equation(decoder, registers, most):
    objective = tiny_gpt(decoder, registers=registers)
    batch = replace(random_batch([size for size in SIZES if size <= (most or 99)]), most=most)
    found, grads = gradients(objective, lambda: stacked(objective.loss(batch, generator())))
    wanted, wanted_grads = gradients(objective, lambda: stacked(gpt_terms(objective, batch)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert_equal_gradients(grads, wanted_grads)
    assert all((gradient != 0).any() for gradient in grads.values())


class Spy:
    """What the head of the tokens was given."""

    def __init__(self, objective):
        objective.token.register_forward_pre_hook(self.before)

    def before(self, module, args):
        del module
        (self.vectors,) = args


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("decoder", [0, 2])
def test_a_constituent_changes_no_prediction_up_to_its_own(decoder, place):
    """Prediction k is that of constituent k: it knows those before, and nothing else."""
    objective, batch = tiny_gpt(decoder), random_batch([5])
    spy = Spy(objective)
    objective.loss(batch, generator())
    before = spy.vectors
    batch.features[place] += 1
    batch.ids[place] = (batch.ids[place] + 1) % 8
    objective.loss(batch, generator())
    changed = (spy.vectors != before).any(1)
    assert changed.tolist() == [k > place for k in range(6)]


def test_jets_do_not_see_each_other():
    objective, batch = tiny_gpt(), random_batch(SIZES)
    spy = Spy(objective)
    objective.loss(batch, generator())
    together = spy.vectors.split([size + 1 for size in SIZES])
    for jet, wanted in enumerate(together):
        objective.loss(take(batch, [jet]), generator())
        torch.testing.assert_close(spy.vectors, wanted, rtol=1e-4, atol=1e-5)


def test_jets_without_constituents_predict_their_end():
    objective = tiny_gpt()
    spy = Spy(objective)
    terms = objective.loss(random_batch([0, 0, 0]), generator())
    assert terms["class"] == 0
    assert len(spy.vectors) == 3
    wanted = -objective.token(spy.vectors).log_softmax(1)[:, CLUSTERS].mean()
    torch.testing.assert_close(terms["token"], wanted)


def test_no_jets_are_no_loss():
    objective = tiny_gpt()
    terms = objective.loss(random_batch([]), generator())
    assert [float(term.detach()) for term in terms.values()] == [0, 0]
    torch.stack([*terms.values()]).sum().backward()
    assert all((p.grad == 0).all() for p in objective.parameters() if p.grad is not None)


def test_the_end_is_learned_only_where_the_jet_was_not_cut():
    """With the head open for the end alone, a jet that was cut has the loss of its constituents."""
    objective, batch = tiny_gpt(), random_batch([4, 4, 2])
    with torch.no_grad():
        objective.token.weight.zero_()
        objective.token.bias.zero_()
        objective.token.bias[CLUSTERS] = 5
    end = math.log(math.exp(5) + CLUSTERS) - 5
    other = math.log(math.exp(5) + CLUSTERS)
    known = objective.loss(batch, generator())["token"].item()
    assert known == pytest.approx((10 * other + 3 * end) / 13, rel=1e-5)
    cut = objective.loss(replace(batch, most=4), generator())["token"].item()
    assert cut == pytest.approx((10 * other + end) / 11, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"causal": False}, "encoder.causal = false: must be true for objective.name = 'gpt'"),
        ({"registers": 0}, "encoder.registers = 0: must be at least 1"),
    ],
)
def test_an_encoder_that_cannot_predict_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_gpt(**settings)


def test_the_decoder_is_half_as_wide_as_the_encoder_or_as_asked():
    encoder = tiny_encoder(causal=True)
    widths = [
        GPTConfig(clusters=CLUSTERS, **given).build(encoder, tokenizer()).token.in_features
        for given in ({}, {"decoder_width": 12}, {"decoder_depth": 0})
    ]
    assert widths == [8, 12, 16]
    with pytest.raises(ConfigError, match=r"objective\.decoder_width = 7: must be a multiple"):
        GPTConfig(decoder_width=7).build(encoder, tokenizer())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_terms_are_float32_in_half_precision_too():
    objective, batch = tiny_gpt(), random_batch(SIZES)
    wanted = stacked(objective.loss(batch, generator()))
    with torch.autocast("cpu", torch.bfloat16):
        terms = stacked(objective.loss(batch, generator()))
    assert terms.dtype == torch.float32
    torch.testing.assert_close(terms, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("name", "decoder"), [("gpt", 2), ("without decoder", 0)])
def test_golden_losses(name, decoder):
    batches = [replace(random_batch(SIZES, seed), most=12) for seed in range(4)]
    assert_golden(train(tiny_gpt(decoder), 20, batches), GOLDEN, name)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    encoder = tiny_encoder(width=32, causal=True)
    objective = GPTConfig(clusters=CLUSTERS).build(encoder, tokenizer())
    losses = train(objective, 80, [random_batch(SIZES)], lr=5e-3)
    assert losses[-1] < losses[0] / 2


def test_without_particle_classes_tokens_are_all_there_is():
    encoder = tiny_config(causal=True).build(random_scaling(), 7, 0, 5)
    objective = GPTConfig(clusters=CLUSTERS).build(encoder, tokenizer())
    batch = replace(random_batch(SIZES), ids=torch.zeros(sum(SIZES), dtype=torch.int64))
    assert objective.loss(batch, generator()).keys() == {"token"}
    made = objective.generate(batch, generator(), Sampling()).made
    assert (made.ids == 0).all()


class Forced:
    """Heads that say with certainty what comes at each place of a jet, whatever was before."""

    def __init__(self, objective, tokens, classes):
        self.calls: list[int] = []
        token, classify = objective.token, objective.classify
        token.forward = lambda x: self.say(x, tokens[len(self.calls)], CLUSTERS + 1, count=True)
        classify.forward = lambda x: self.say(x, classes[len(self.calls) - 1], 8)

    def say(self, vectors, word, words, *, count=False):
        self.calls += [len(vectors)] if count else []
        return 1e4 * one_hot(torch.full((len(vectors),), word), words).float()


def test_a_jet_is_written_word_by_word():
    objective = tiny_gpt()
    Forced(objective, [3, 10, 0, CLUSTERS], [1, 3, 4])
    made = objective.sample(torch.zeros(2, 5), generator(), most=9)
    assert made.packing.sizes.tolist() == [3, 3]
    assert made.ids.tolist() == [1, 3, 4] * 2
    wanted = objective.tokenizer.centres[[3, 10, 0]]
    assert torch.equal(made.features, torch.cat([wanted, wanted]))


def test_neutral_constituents_get_no_impact_parameters():
    objective = tiny_gpt()
    Forced(objective, [3, 3, CLUSTERS], [0, 2])
    made = objective.sample(torch.zeros(1, 5), generator(), most=9)
    assert torch.equal(made.features[:, :3], objective.tokenizer.centres[[3, 3], :3])
    assert (made.features[:, 3:] == 0).all()


def test_a_jet_without_an_end_is_stopped():
    objective = tiny_gpt()
    Forced(objective, [1] * 6, [1] * 6)
    made = objective.sample(torch.zeros(3, 5), generator(), most=6)
    assert made.packing.sizes.tolist() == [6, 6, 6]


def test_jets_that_end_at_once_are_empty():
    objective = tiny_gpt()
    Forced(objective, [CLUSTERS], [])
    made = objective.sample(torch.zeros(3, 5), generator(), most=6)
    assert made.packing.sizes.tolist() == [0, 0, 0]
    assert made.features.shape == (0, 7)


def test_words_come_as_often_as_their_probabilities_say():
    objective, jets = tiny_gpt(), 4000
    with torch.no_grad():
        objective.token.weight.zero_()
        objective.token.bias.copy_(torch.linspace(-1, 1, CLUSTERS + 1))
        for parameter in objective.classify.parameters():  # half of them are charged
            parameter.zero_()
    for temperature in (1.0, 0.5):
        made = objective.sample(torch.zeros(jets, 5), generator(), most=1, temperature=temperature)
        chances = (objective.token.bias.detach() / temperature).softmax(0)
        words = objective.tokenizer.encode(made.features[made.ids % 2 == 1])  # charged: all told
        ends = jets - made.packing.total
        assert ends / jets == pytest.approx(float(chances[-1]), abs=0.03)
        shares = words.bincount(minlength=CLUSTERS) / len(words)
        wanted = chances[:-1] / chances[:-1].sum()
        assert (shares - wanted).abs().max() < 0.04


def test_lengths_are_those_of_a_constant_probability_to_end():
    objective, jets = tiny_gpt(), 2000
    with torch.no_grad():
        objective.token.weight.zero_()
        objective.token.bias.zero_()
        objective.token.bias[CLUSTERS] = math.log(CLUSTERS / 3)  # ends with 1/4 each time
    sizes = objective.sample(torch.zeros(jets, 5), generator(), most=40).packing.sizes
    assert float(sizes.double().mean()) == pytest.approx(3, abs=0.3)
    assert float((sizes == 0).double().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("decoder", [0, 2])
def test_each_step_predicts_as_in_training(decoder, monkeypatch):
    """What is sampled from at each place is what the loss computes for the finished jet."""
    objective = tiny_gpt(decoder)
    spy, steps = Spy(objective), []
    jets = torch.randn(1, 5, generator=generator(5))
    objective.token.register_forward_hook(lambda *args: steps.append(args[1][0]))
    made = objective.sample(jets, generator(4), most=6)
    assert made.packing.total >= 3
    monkeypatch.setattr(objective.encoder, "scale", lambda batch: batch)
    objective.loss(made, generator())
    torch.testing.assert_close(
        torch.cat(steps[: len(spy.vectors)])[: made.packing.total],
        spy.vectors[: made.packing.total],
    )


def test_sampling_is_given_by_the_generator():
    objective, batch = tiny_gpt(), replace(random_batch(SIZES), most=12)
    one, two, other = (objective.generate(batch, generator(seed), Sampling()) for seed in (0, 0, 1))
    assert torch.equal(one.made.features, two.made.features)
    assert not torch.equal(one.made.packing.sizes, other.made.packing.sizes)
    assert one.made.packing.num_jets == len(SIZES)
    assert one.made.packing.longest <= 12
    assert not one.kept.any()
