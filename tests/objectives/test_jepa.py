"""JEPA: its equation, its teacher, what it may see, and that it learns without collapse."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.jepa import jepa_loss, smooth_l1
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
from reference.processes import halves_agree
from safetensors.torch import load_file

from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives.jepa import JEPAConfig
from jetssl_cli.objectives.masking import (
    RandomMaskConfig,
    SubjetMaskConfig,
    group_mask,
    random_mask,
)
from jetssl_cli.runs.checkpoint import BACKBONE, MODEL
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.probe import effective_rank, jet_vectors
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.tracking import METRICS

GOLDEN = Path(__file__).with_name("golden_jepa.json")
"""Losses of 20 steps. To write it anew, after a change that is meant to change them:
``JETSSL_REGENERATE=1 python -m pytest tests/objectives/test_jepa.py -k golden``."""


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_jepa(hidden_share=0.5, power=3, koleo=0.1, **settings):
    """JEPA with weights that are not those of the beginning, and a teacher of its own."""
    mask = RandomMaskConfig(share=hidden_share)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = JEPAConfig(mask=mask, teacher_power=power, koleo=koleo).build(
            tiny_encoder(**settings)
        )
    randomise(objective.predictor, 1)
    randomise(objective.out, 2)
    randomise(objective.teacher, 3)
    return objective


def total(objective, batch, generator):
    return torch.stack(list(objective.loss(batch, generator).values())).sum()


def total_by_hand(objective, batch, generator):
    return torch.stack(list(jepa_loss(objective, batch, generator).values())).sum()


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_loss_and_gradients_are_those_of_the_equation(share, context):
    objective = tiny_jepa(share, context=context)
    batch = random_batch([size for size in SIZES if size])  # empty jets are all alike
    found, wanted = objective.loss(batch, rng(7)), jepa_loss(objective, batch, rng(7))
    torch.testing.assert_close(dict(found), wanted, rtol=1e-5, atol=1e-5)
    _, grads = gradients(objective, lambda: total(objective, batch, rng(7)))
    _, wanted_grads = gradients(objective, lambda: total_by_hand(objective, batch, rng(7)))
    assert_equal_gradients(grads, wanted_grads)
    for name, gradient in grads.items():
        assert (gradient != 0).any() == (not name.startswith("teacher.")), name


def test_a_step_and_the_teacher_after_it():
    """Descent along the gradients of the equation, then the moving average, weight by weight."""
    batch = random_batch([size for size in SIZES if size])
    objective = tiny_jepa()
    by_hand = copy.deepcopy(objective)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    total(objective, batch, rng(7)).backward()
    optimizer.step()
    objective.teacher.steps += 4
    objective.after_step(0.25)

    total_by_hand(by_hand, batch, rng(7)).backward()
    m = (1 - 1 / 5) ** 3
    with torch.no_grad():
        for p in by_hand.parameters():
            if p.grad is not None:
                p.sub_(0.05 * p.grad)
        student = dict(by_hand.encoder.named_parameters())
        for name, p in by_hand.teacher.encoder.named_parameters():
            p.copy_(m * p + (1 - m) * student[name])
    wanted = dict(by_hand.named_parameters())
    for name, p in objective.named_parameters():
        torch.testing.assert_close(p, wanted[name], rtol=1e-4, atol=1e-5)
    found, again = (f(o, batch, rng(8)) for f, o in ((total, objective), (total_by_hand, by_hand)))
    torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-4)


def test_every_weight_that_is_exported_moves_in_a_step():
    objective, batch = tiny_jepa(), random_batch(SIZES)
    before = {name: p.clone() for name, p in objective.exported().named_parameters()}
    assert objective.exported() is objective.teacher.encoder
    steps(objective, 2, [batch], OptimConfig(lr=1e-2))
    for name, p in objective.exported().named_parameters():
        assert not torch.equal(p, before[name]), name


def test_the_teacher_begins_as_the_student():
    objective = JEPAConfig().build(tiny_encoder())
    for name in ("encoder",):
        theirs = objective.get_submodule(name).state_dict()
        ours = objective.teacher.parts[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_only_the_teacher_sees_hidden_constituents(monkeypatch):
    objective, batch = tiny_jepa(), random_batch(SIZES)
    given = {}
    for name, encoder in (("student", objective.encoder), ("teacher", objective.teacher.encoder)):
        prepared = encoder._prepared

        def spy(scaled, *, name=name, prepared=prepared):
            given[name] = scaled
            return prepared(scaled)

        monkeypatch.setattr(encoder, "_prepared", spy)
    objective.loss(batch, rng(3))
    hidden = random_mask(batch.packing, 0.5, rng(3))
    scaled = objective.encoder.scale(batch)
    assert torch.equal(given["student"].features, scaled.features[~hidden])
    assert torch.equal(given["student"].ids, scaled.ids[~hidden])
    assert torch.equal(given["teacher"].features, scaled.features)


def test_targets_are_standardised_and_no_gradient_reaches_the_teacher():
    objective, batch = tiny_jepa(), random_batch(SIZES)
    chosen = torch.arange(batch.packing.total).flip(0)
    targets = objective.targets(objective.encoder.scale(batch), chosen)
    torch.testing.assert_close(targets.mean(1), torch.zeros(len(targets)), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        targets.var(1, correction=0), torch.ones(len(targets)), rtol=1e-3, atol=0
    )
    assert not targets.requires_grad
    objective.train()
    total(objective, batch, rng()).backward()
    assert not any(module.training for module in objective.teacher.modules())
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_subjets_are_hidden_whole():
    sizes = [12, 0, 1, 9, 4]
    groups = torch.cat([torch.arange(n) // 2 for n in sizes])
    batch = replace(random_batch(sizes), subjets=groups)
    with torch.random.fork_rng():
        objective = JEPAConfig(mask=SubjetMaskConfig(share=0.4)).build(tiny_encoder())
    asked = []
    objective.predictor.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    assert objective.loss(batch, rng(3))["smooth_l1"] > 0
    hidden = group_mask(batch.packing, groups, 0.4, rng(3))
    assert torch.equal(asked[0].sizes, batch.packing.keep(hidden).sizes)
    assert objective.subjet_radius == 0.1
    assert tiny_jepa().subjet_radius is None


@pytest.mark.parametrize("sizes", [[1, 0, 1], [0, 0], [1], []])
def test_nothing_to_hide_is_no_loss(sizes):
    objective = tiny_jepa()
    loss = objective.loss(random_batch(sizes), rng())["smooth_l1"]
    assert loss == 0
    loss.backward()
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert all((grad == 0).all() for grad in grads)
    assert objective.diagnostics() == {"target_std": 0}


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_the_loss_is_in_full_precision_where_the_network_is_not():
    objective, batch = tiny_jepa(), random_batch([9, 4, 30])
    wanted = objective.loss(batch, rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = objective.loss(batch, rng(1))
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted[name], rtol=0.05, atol=0.05)


def test_only_the_generator_decides():
    objective, batch = tiny_jepa(), random_batch(SIZES)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = total(objective, batch, rng(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(total(objective, batch, rng(5)), first)
    assert not torch.equal(total(objective, batch, rng(6)), first)


def test_the_order_of_the_jets_does_not_matter():
    """Jets of which every constituent but one is hidden, so that the mask does not matter."""
    sizes = [2] * 6
    objective, batch = tiny_jepa(), random_batch(sizes)
    twins = replace(
        batch,
        features=batch.features.view(6, 2, -1)[:, :1].repeat(1, 2, 1).flatten(0, 1),
        ids=batch.ids.view(6, 2)[:, :1].repeat(1, 2).flatten(),
    )
    turned = take(twins, [3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(total(objective, turned, rng(1)), total(objective, twins, rng(1)))


def test_diagnostics_are_the_spread_of_the_targets_since_they_were_last_read():
    objective, batch = tiny_jepa().eval(), random_batch(SIZES)
    objective.loss(random_batch(SIZES, 4), rng(1))
    objective.diagnostics()
    objective.train().loss(random_batch(SIZES, 5), rng(1))  # does not count
    objective.eval()
    wanted = []
    for seed in (2, 3):
        objective.loss(batch, rng(seed))
        hidden = random_mask(batch.packing, 0.5, rng(seed)).nonzero()[:, 0]
        wanted.append(objective.targets(objective.encoder.scale(batch), hidden))
    spread = torch.cat(wanted).var(0, correction=0).mean().sqrt()
    assert objective.diagnostics() == {"target_std": pytest.approx(float(spread), rel=1e-5)}
    assert objective.diagnostics() == {"target_std": 0}
    assert not any("totals" in key for key in objective.state_dict())


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """But for the term that spreads jets, which looks at the jets of one process."""
    halves_agree(tmp_path, tiny_jepa(koleo=0), random_batch([*SIZES, 20, 9, 4]), 5)


def test_the_width_of_the_predictor_and_what_cannot_be_built():
    objective = JEPAConfig().build(tiny_encoder(width=32))
    assert objective.out.in_features == 16
    with pytest.raises(ConfigError, match=r"objective\.predictor_width = 15: must be a multiple"):
        JEPAConfig(predictor_width=15).build(tiny_encoder())
    with pytest.raises(ConfigError, match=r"encoder\.registers = 0: must be at least 1 for jepa"):
        JEPAConfig().build(tiny_encoder(registers=0))


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
    losses = steps(tiny_jepa(), 20, batches, OptimConfig(lr=1e-3))
    if os.environ.get("JETSSL_REGENERATE"):
        GOLDEN.write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_a_run_records_every_term_and_exports_the_teacher(jagged, tmp_path):
    cfg = PretrainConfig(
        out=tmp_path / "run",
        objective=JEPAConfig(),
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
    terms = {"val/smooth_l1", "val/koleo"}
    assert terms | {"val/target_std"} <= found.keys()
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
    """The trivial level: to answer, for each k, the mean target of all k-th hidden constituents.

    That is the best of all answers that do not look at the jet.
    """
    objective, batch = trained("jepa", jagged, steps=300)
    with torch.no_grad():
        loss = float(objective.loss(batch, rng(1))["smooth_l1"])
        scaled = objective.encoder.scale(batch)
        split = objective.cfg.mask.split(scaled, rng(1))
        wanted = objective.targets(scaled, split.hidden_rows)
        ranks = split.unseen.packing.rank
        sums = torch.zeros(int(ranks.max()) + 1, wanted.shape[1]).index_add(0, ranks, wanted)
        means = sums / torch.bincount(ranks)[:, None]
        trivial = float(smooth_l1(wanted - means[ranks]).mean())
        vectors = jet_vectors(objective.exported()(batch))
    assert loss < 0.96 * trivial
    assert effective_rank(vectors) > 15
