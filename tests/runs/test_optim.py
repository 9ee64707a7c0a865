"""What is decayed, and how the learning rate runs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.jets import tiny_encoder
from torch import nn

from jetssl_cli.encoder.transformer import Linear
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.probe import Probe


def networks():
    frozen = SupervisedConfig(frozen=True).build(tiny_encoder(), 10)
    both = nn.ModuleList([SSFMConfig().build(tiny_encoder()), Probe(16, 10)])
    return {"ssfm and probe": both, "frozen": frozen, "bare": tiny_encoder(context=False)}


@pytest.mark.parametrize("name", networks())
def test_every_trainable_parameter_stands_in_one_group(name):
    network = networks()[name]
    groups = OptimConfig(weight_decay=0.3).build(network).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    wanted = [id(p) for p in network.parameters() if p.requires_grad]
    assert sorted(found) == sorted(wanted)
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}


@pytest.mark.parametrize("name", networks())
def test_weight_decay_is_for_matrices_of_linear_layers(name):
    network = networks()[name]
    names = {id(p): path for path, p in network.named_parameters()}
    groups = OptimConfig(weight_decay=0.3).build(network).param_groups
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    for path in decayed:
        assert path.endswith(".weight")
        assert not any(word in path for word in ("modulation", "norm", "embed_id"))
        assert type(network.get_submodule(path.removesuffix(".weight"))) in (nn.Linear, Linear)
    for path in spared:
        owner = network.get_submodule(path.rpartition(".")[0])
        assert not (type(owner) in (nn.Linear, Linear) and path.endswith(".weight"))
    if name == "ssfm and probe":
        for kind in ("registers", "query", "embed_id.weight", "modulation.weight", "norm.weight"):
            assert any(path.endswith(kind) for path in spared)


def test_decay_shrinks_matrices_and_nothing_else():
    encoder = tiny_encoder()
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    optimizer = OptimConfig(lr=0.1, weight_decay=0.5).build(encoder)
    for p in encoder.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in encoder.named_parameters():
        owner = encoder.get_submodule(name.rpartition(".")[0])
        matrix = type(owner) in (nn.Linear, Linear) and p.ndim == 2
        torch.testing.assert_close(p, before[name] * (0.95 if matrix else 1))


def test_settings_arrive():
    optimizer = OptimConfig(lr=0.02, betas=(0.8, 0.85)).build(tiny_encoder())
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (0.02, (0.8, 0.85))


@given(steps=st.integers(1, 400), warmup=st.integers(0, 100), final=st.floats(0, 1, width=32))
@settings(max_examples=200)
def test_the_schedule(steps, warmup, final):
    """Rises in at most a tenth of the run, then falls from 1 to its end, and never below."""
    optim = OptimConfig(warmup_steps=warmup, final_lr=final)

    def factor(step):
        return optim.factor(step, steps)

    values = [factor(step) for step in range(steps)]
    top = min(warmup, steps // 10)
    assert all(0 < value <= 1 + 1e-9 for value in values[: top + 1])
    assert values[top] == pytest.approx(1)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert factor(steps) == pytest.approx(final)
    assert all(factor(step) >= 0 for step in range(3 * steps))
    assert factor(3 * steps) == pytest.approx(final)


def test_the_schedule_is_a_line_and_a_cosine():
    optim = OptimConfig(warmup_steps=4, final_lr=0.2)
    assert [optim.factor(step, 104) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    for step in range(4, 105):
        wanted = 0.2 + 0.8 * math.cos(math.pi * (step - 4) / 200) ** 2
        assert optim.factor(step, 104) == pytest.approx(wanted)


@pytest.mark.parametrize("steps", [1, 5])
def test_short_runs_have_no_warm_up(steps):
    optim = OptimConfig(warmup_steps=1000)
    assert optim.factor(0, steps) == 1
    assert all(optim.factor(step, steps) > 0.05 for step in range(steps))
    assert optim.factor(steps, steps) == pytest.approx(0.05)


@given(
    paces=st.lists(st.floats(0.01, 5), min_size=1, max_size=300),
    limit=st.floats(0.5, 500),
    warmup=st.integers(0, 50),
)
@settings(max_examples=200)
def test_the_schedule_of_a_run_that_time_ends(paces, limit, warmup):
    """However the pace changes: it rises in at most a tenth of the time, then falls."""
    optim = OptimConfig(warmup_steps=warmup, final_lr=0.1)
    now, values, shares = 0.0, [], []
    for step, pace in enumerate(paces):
        if now >= limit:
            break
        values.append(optim.factor(step, step / (now / limit) if now else math.inf))
        shares.append(now / limit)
        now += pace
    top = next((n for n in range(len(values)) if n >= warmup or shares[n] >= 0.1), len(values))
    assert all(0 < value <= 1 for value in values[:top])
    falling = values[top:]
    slack = 2 / max(len(values), 1)  # the warm-up is a whole number of steps
    assert all(later <= earlier + slack for earlier, later in itertools.pairwise(falling))
    assert optim.factor(len(paces), len(paces)) == pytest.approx(0.1)


def test_at_a_steady_pace_time_and_steps_have_one_schedule():
    optim = OptimConfig(warmup_steps=7)
    for step in range(1, 200):
        assert optim.factor(step, step / (step / 200)) == pytest.approx(optim.factor(step, 200))
