"""DINO: its equation, Sinkhorn-Knopp, its teacher, and that it learns without collapse."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.dino import dino_loss, sinkhorn_loop
from reference.jets import (
    SIZES,
    assert_equal_gradients,
    gradients,
    random_batch,
    randomise,
    take,
    tiny_config,
    tiny_encoder,
)
from reference.learning import trained
from reference.processes import halves_agree, in_processes
from safetensors.torch import load_file

from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives.dino import DINOConfig, Head, sinkhorn
from jetssl_cli.objectives.masking import RandomMaskConfig, random_mask
from jetssl_cli.objectives.spread import register_means
from jetssl_cli.runs import probe
from jetssl_cli.runs.checkpoint import BACKBONE, MODEL
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.tracking import METRICS

GOLDEN = Path(__file__).with_name("golden_dino.json")
"""Losses of 20 steps. To write it anew, after a change that is meant to change them:
``JETSSL_REGENERATE=1 python -m pytest tests/objectives/test_dino.py -k golden``."""
TERMS = ("dino", "ibot", "koleo")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_dino(hidden_share=0.5, encoder=None, **settings):
    """DINO with weights that are not those of the beginning, and a teacher of its own."""
    usual = {"prototypes": 12, "bottleneck": 6, "teacher_power": 3}
    config = DINOConfig(mask=RandomMaskConfig(share=hidden_share), **(usual | settings))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = config.build(tiny_encoder(**(encoder or {})))
    for seed, part in enumerate(objective.children()):
        if part is not objective.encoder:
            randomise(part, seed)
    return objective


def total(objective, batch, generator):
    return torch.stack(list(objective.loss(batch, generator).values())).sum()


def total_by_hand(objective, batch, generator):
    return torch.stack(list(dino_loss(objective, batch, generator).values())).sum()


@pytest.mark.parametrize(("context", "told"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_loss_and_gradients_are_those_of_the_equation(share, context, told):
    objective = tiny_dino(share, encoder={"context": context}, teacher_context=told)
    batch = random_batch([size for size in SIZES if size])  # empty jets: all alike, below
    found, wanted = objective.loss(batch, rng(7)), dino_loss(objective, batch, rng(7))
    assert tuple(found) == TERMS
    torch.testing.assert_close(dict(found), wanted, rtol=1e-4, atol=1e-5)
    _, grads = gradients(objective, lambda: total(objective, batch, rng(7)))
    _, wanted_grads = gradients(objective, lambda: total_by_hand(objective, batch, rng(7)))
    assert_equal_gradients(grads, wanted_grads)
    for name, gradient in grads.items():
        assert (gradient != 0).any() == (not name.startswith("teacher.")), name


def test_a_step_and_the_teacher_after_it():
    """Descent along the gradients of the equation, then the moving average, weight by weight."""
    batch = random_batch([size for size in SIZES if size])
    objective = tiny_dino()
    by_hand = copy.deepcopy(objective)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    total(objective, batch, rng(7)).backward()
    optimizer.step()
    objective.teacher.steps += 4
    objective.after_step(0.25)

    total_by_hand(by_hand, batch, rng(7)).backward()
    m = (1 - 1 / 5) ** 3
    with torch.no_grad():
        for p in by_hand.parameters():
            if p.grad is not None:
                p.sub_(0.01 * p.grad)
        student = dict(by_hand.named_parameters())
        for name, p in by_hand.teacher.parts.named_parameters():
            p.copy_(m * p + (1 - m) * student[name])
    wanted = dict(by_hand.named_parameters())
    for name, p in objective.named_parameters():
        torch.testing.assert_close(p, wanted[name], rtol=1e-4, atol=1e-5)
    found, again = (f(o, batch, rng(8)) for f, o in ((total, objective), (total_by_hand, by_hand)))
    torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-4)


def test_every_weight_of_the_teacher_moves_in_a_step_heads_included():
    objective, batch = tiny_dino(), random_batch(SIZES)
    before = {name: p.clone() for name, p in objective.teacher.named_parameters()}
    assert objective.exported() is objective.teacher.encoder
    steps(objective, 2, [batch], OptimConfig(lr=1e-2))
    for name, p in objective.teacher.named_parameters():
        assert not torch.equal(p, before[name]), name
    prefixes = {name.split(".")[1] for name in before}
    assert prefixes == {"encoder", "jet_head", "token_head"}


def test_the_teacher_begins_as_the_student():
    objective = DINOConfig(prototypes=12).build(tiny_encoder())
    for name in ("encoder", "jet_head", "token_head"):
        theirs = objective.get_submodule(name).state_dict()
        ours = objective.teacher.parts[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("told", [True, False])
def test_only_the_teacher_sees_hidden_constituents_and_the_student_jet_features(monkeypatch, told):
    objective, batch = tiny_dino(teacher_context=told), random_batch(SIZES)
    given = {}
    for name, encoder in (("student", objective.encoder), ("teacher", objective.teacher.encoder)):
        encode = encoder.encode

        def spy(scaled, name=name, encode=encode):
            given[name] = scaled
            return encode(scaled)

        monkeypatch.setattr(encoder, "encode", spy)
    objective.loss(batch, rng(3))
    hidden = random_mask(batch.packing, 0.5, rng(3))
    scaled = objective.encoder.scale(batch)
    assert torch.equal(given["student"].features, scaled.features[~hidden])
    assert torch.equal(given["student"].ids, scaled.ids[~hidden])
    assert torch.equal(given["teacher"].features, scaled.features)
    assert torch.equal(given["student"].jets, scaled.jets)
    assert torch.equal(given["teacher"].jets, scaled.jets if told else 0 * scaled.jets)


def test_the_teacher_is_in_evaluation_and_gets_no_gradients():
    objective = tiny_dino().train()
    total(objective, random_batch(SIZES), rng()).backward()
    assert not any(module.training for module in objective.teacher.modules())
    assert all(p.grad is None for p in objective.teacher.parameters())


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 8), steps=st.integers(0, 4), seed=st.integers()
)
@settings(max_examples=40)
def test_sinkhorn_is_the_plain_loop(rows, columns, steps, seed):
    values = 5 * torch.randn(rows, columns, generator=rng(seed % 2**32))
    found = sinkhorn(values, steps)
    torch.testing.assert_close(
        found.double(), sinkhorn_loop(values.double(), steps), rtol=1e-4, atol=1e-7
    )


def test_rows_of_sinkhorn_sum_to_one_and_columns_to_the_same():
    values = 20 * torch.rand(200, 16, generator=rng()) + torch.arange(16)
    assert sinkhorn(values).sum(1).tolist() == pytest.approx([1] * 200)
    far = sinkhorn(values, 100)
    assert far.sum(1).tolist() == pytest.approx([1] * 200)
    assert far.sum(0).tolist() == pytest.approx([200 / 16] * 16, rel=1e-3)
    assert values.softmax(-1).sum(0).max() > 50
    torch.testing.assert_close(sinkhorn(values + 1000), sinkhorn(values), rtol=1e-3, atol=1e-5)


def test_sinkhorn_of_values_far_apart_and_of_nothing():
    values = torch.tensor([[400.0, 0.0], [400.0, 0.0], [0.0, 0.0]])
    assert sinkhorn(values).isfinite().all()
    assert sinkhorn(torch.zeros(0, 5)).shape == (0, 5)
    torch.testing.assert_close(sinkhorn(torch.zeros(3, 4)), torch.full((3, 4), 0.25))


@pytest.mark.slow
def test_sinkhorn_over_two_processes_is_that_of_all_rows(tmp_path):
    values = 5 * torch.randn(30, 7, generator=rng())
    parts = [(values[:21],), (values[21:],)]
    found = torch.cat(in_processes(tmp_path, sinkhorn, parts))
    torch.testing.assert_close(found, sinkhorn(values))
    apart = torch.cat([sinkhorn(part) for (part,) in parts])
    assert (apart - found).abs().max() > 0.05


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """But for the term that spreads jets, which looks at the jets of one process."""
    halves_agree(tmp_path, tiny_dino(koleo=0.0), random_batch([*SIZES, 20, 9, 4]), 5)


def test_logits_are_cosines_and_are_not_normalised():
    head = randomise(Head(16, 6, 12))
    vectors = torch.randn(50, 16, generator=rng())
    logits = head(vectors)
    assert logits.abs().max() <= 1 + 1e-6
    lengths = logits.norm(dim=1)
    assert lengths.max() > 1.1 * lengths.min()
    with torch.no_grad():
        head.prototypes *= 3
    torch.testing.assert_close(head(vectors), logits)


@pytest.mark.parametrize("sizes", [[1, 0, 1], [0, 0], [1], []])
def test_nothing_to_hide_is_no_loss_of_tokens(sizes):
    objective = tiny_dino()
    terms = objective.loss(random_batch(sizes), rng())
    assert terms["ibot"] == 0
    assert all(value.isfinite() for value in terms.values())
    terms["ibot"].backward(retain_graph=True)
    assert all((p.grad == 0).all() for p in objective.parameters() if p.grad is not None)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert all(math.isfinite(value) for value in objective.diagnostics().values())


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_the_loss_is_in_full_precision_where_the_network_is_not():
    objective, batch = tiny_dino(), random_batch([9, 4, 30])
    wanted = objective.loss(batch, rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = objective.loss(batch, rng(1))
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted[name], rtol=0.05, atol=0.05)


def test_only_the_generator_decides():
    objective, batch = tiny_dino(), random_batch(SIZES)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = total(objective, batch, rng(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(total(objective, batch, rng(5)), first)
    assert not torch.equal(total(objective, batch, rng(6)), first)


def test_the_order_of_the_jets_does_not_matter():
    """Jets of two equal constituents, so that it does not matter which of them is hidden."""
    batch = random_batch([2] * 6)
    batch.features[1::2], batch.ids[1::2] = batch.features[::2], batch.ids[::2]
    objective, turned = tiny_dino(), take(batch, [3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        dict(objective.loss(turned, rng(1))), dict(objective.loss(batch, rng(1)))
    )


def test_diagnostics_tell_how_prototypes_are_used_since_they_were_last_read():
    objective = tiny_dino(prototypes=4, teacher_context=True).eval()
    batch = random_batch(SIZES)
    objective.loss(random_batch(SIZES, 3), rng(1))
    objective.diagnostics()
    objective.train().loss(random_batch(SIZES, 4), rng(1))  # does not count
    objective.eval()
    objective.loss(batch, rng(2))
    found = objective.diagnostics()
    whole = objective.teacher.encoder(batch)
    logits = objective.teacher.parts["jet_head"](register_means(whole))
    shares = torch.bincount(logits.argmax(1), minlength=4) / len(SIZES)
    assert found["jet_occupancy"] == pytest.approx(torch.special.entr(shares).sum().exp() / 4)
    targets = sinkhorn(logits / 0.05)
    entropy = torch.special.entr(targets).sum(1).mean()
    assert found["jet_teacher_entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert 0 < found["token_student_entropy"] < math.log(4)
    again = objective.diagnostics()
    assert again["jet_occupancy"] == pytest.approx(1 / 4)  # of nothing
    assert again["token_student_entropy"] == 0
    assert not any("totals" in key for key in objective.state_dict())


def test_cosines_and_means_are_not_rounded_in_half_precision():
    objective, batch = tiny_dino(), random_batch(SIZES)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoded = objective.encoder(batch)
        means = register_means(encoded)
        logits, bottleneck = objective.jet_head(means), objective.jet_head.mlp(means)
    registers = encoded.tokens[encoded.packing.rank < objective.encoder.cfg.registers].double()
    wanted = registers.view(len(SIZES), -1, registers.shape[1]).mean(1)
    torch.testing.assert_close(means.double(), wanted, rtol=1e-6, atol=1e-7)
    sides = (bottleneck.double(), objective.jet_head.prototypes.detach().double())
    cosines = torch.nn.functional.cosine_similarity(sides[0][:, None], sides[1][None], dim=-1)
    torch.testing.assert_close(logits.double(), cosines, rtol=0, atol=1e-6)


def test_what_cannot_be_built():
    with pytest.raises(ConfigError, match=r"objective\.predictor_width = 15: must be a multiple"):
        DINOConfig(predictor_width=15).build(tiny_encoder())
    with pytest.raises(ConfigError, match=r"encoder\.registers = 0: must be at least 1 for dino"):
        DINOConfig().build(tiny_encoder(registers=0))


def steps(objective, num, batches, optim):
    """Losses of a short training."""
    optimizer = optim.build(objective)
    generator = rng()
    losses = []
    for step in range(num):
        optimizer.zero_grad()
        loss = total(objective, batches[step % len(batches)], generator)
        loss.backward()
        optimizer.step()
        objective.after_step((step + 1) / num)
        losses.append(float(loss.detach()))
    return losses


def test_golden_losses():
    batches = [random_batch(SIZES, seed) for seed in range(4)]
    losses = steps(tiny_dino(), 20, batches, OptimConfig(lr=1e-3))
    if os.environ.get("JETSSL_REGENERATE"):
        GOLDEN.write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_a_run_records_every_term_and_exports_the_teacher(jagged, tmp_path):
    cfg = PretrainConfig(
        out=tmp_path / "run",
        objective=DINOConfig(prototypes=12, bottleneck=6),
        encoder=tiny_config(),
        data=DataConfig(
            train=jagged / "train.h5",
            val=jagged / "val.h5",
            batch_size=16,
            max_constituents=12,
            num_val_jets=24,
        ),
        train=TrainConfig(steps=2),
        tracking=False,
    )
    run = pretrain(cfg)
    found = json.loads((run / METRICS).read_text().splitlines()[-1])
    terms = {"val/dino", "val/ibot", "val/koleo"}
    assert terms | {"val/jet_occupancy"} <= found.keys()
    assert found["val/loss"] == pytest.approx(sum(found[name] for name in terms))
    model, backbone = (load_file(run / name) for name in (MODEL, BACKBONE))
    prefix = "teacher.parts.encoder."
    teacher = {k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)}
    assert teacher.keys() == backbone.keys()
    assert all(torch.equal(teacher[key], value) for key, value in backbone.items())
    assert not torch.equal(backbone["out.weight"], model["encoder.out.weight"])


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_it_learns_without_collapse(jagged):
    """The trivial level: log K, that of uniform answers, and of all that do not look at the jet.

    Sinkhorn-Knopp makes the mean target uniform, so that no other fixed answer is better.
    """
    objective, batch = trained("dino", jagged, steps=200)
    trivial = math.log(objective.cfg.prototypes)
    with torch.no_grad():
        terms = objective.loss(batch, rng(1))
        vectors = probe.jet_vectors(objective.exported()(batch))
    assert terms["dino"] < 0.87 * trivial
    assert terms["ibot"] < 0.97 * trivial
    assert probe.effective_rank(vectors) > 20
