"""When a run ends, and how far it has come."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from jetssl_cli.config import Layer, Strict, load, to_yaml
from jetssl_cli.errors import ConfigError
from jetssl_cli.runs.budget import KINDS, Budget, BudgetConfig, latest, seconds
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, load_config


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("24h", 86_400), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("2d", 172_800), ("1.5s", 1.5)],
)
def test_durations(text, wanted):
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "5", "h", "1h 30m", "30m1h", "-1h", "0s", "1e3s", "1:30"])
def test_what_is_no_duration_is_told(text):
    with pytest.raises(ValueError, match="such as 2d, 24h"):
        seconds(text)
    with pytest.raises(ValidationError, match="such as 2d, 24h"):
        BudgetConfig(max_time=text)


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def test_steps_and_jets_end_a_run():
    for cfg, unit in ((BudgetConfig(steps=4), "steps"), (BudgetConfig(jets=31), "jets")):
        budget = Budget(cfg, 10)
        assert (budget.unit, budget.last_step, budget.expected_steps) == (unit, 4, 4)
        budget.start()
        shares = []
        while not budget.finished:
            budget.step()
            shares.append(budget.progress)
        assert budget.steps == 4
        each = 1 / 4 if unit == "steps" else 10 / 31
        assert shares == pytest.approx([each, 2 * each, 3 * each, 1])


def test_time_ends_a_run_after_the_step_in_which_it_is_over():
    clock = Clock()
    budget = Budget(BudgetConfig(max_time="10s"), 10, clock=clock)
    clock.now += 100  # before the start nothing is counted
    budget.start()
    assert (budget.progress, budget.expected_steps, budget.unit) == (0, math.inf, "s")
    for _ in range(4):
        clock.now += 2.4
        budget.step()
        assert not budget.finished
    assert budget.progress == pytest.approx(0.96)
    assert budget.expected_steps == pytest.approx(4 / 0.96)
    clock.now += 2.4
    budget.step()
    assert (budget.finished, budget.progress, budget.steps) == (True, 1, 5)
    assert budget.expected_steps == 5


def test_a_slow_first_step_says_nothing_of_the_pace():
    clock, optim = Clock(), OptimConfig(warmup_steps=100)
    for again in (False, True):  # and not after a run is resumed
        budget = Budget(BudgetConfig(max_time="10m"), 10, clock=clock)
        budget.steps, budget.seconds = (1000, 100.0) if again else (0, 0.0)
        budget.start()
        clock.now += 60  # compilation
        budget.step()
        left = 600 - budget.seconds
        assert budget.expected_steps == (1001 + left / 0.1 if again else math.inf)
        if not again:
            assert optim.factor(budget.steps, budget.expected_steps) == pytest.approx(2 / 101)
        clock.now += 0.1
        budget.step()
        assert budget.expected_steps == pytest.approx(budget.steps + (left - 0.1) / 0.1)
        if again:  # nor do the next ones say much of a run of a thousand
            clock.now += 2
            budget.step()
            assert budget.expected_steps > 0.98 * (budget.steps + (left - 2.1) / 0.1)


def test_a_budget_goes_on_where_it_stood():
    clock = Clock()
    budget = Budget(BudgetConfig(max_time="10s"), 10, clock=clock)
    budget.steps, budget.seconds = 3, 6.0
    budget.start()
    clock.now += 1
    budget.step()
    assert (budget.steps, budget.progress) == (4, pytest.approx(0.7))


def test_the_seconds_are_those_that_all_agree_on():
    budget = Budget(BudgetConfig(max_time="10s"), 10, agree=lambda _: 4.0)
    budget.start()
    budget.step()
    assert budget.seconds == 4


class Run(Strict):
    train: BudgetConfig = BudgetConfig(steps=7)


def found(*layers, overrides=()):
    given = [Layer(f"layer {n}", {"train": train}) for n, train in enumerate(layers)]
    cfg = load(Run, latest(given, overrides)).train
    return {kind: getattr(cfg, kind) for kind in KINDS if getattr(cfg, kind) is not None}


def test_a_later_budget_replaces_an_earlier_one():
    assert found() == {"steps": 7}
    assert found({}) == {"steps": 100_000}
    assert found({"jets": 50}) == {"jets": 50}
    assert found({"steps": 5}, {"jets": 50}) == {"jets": 50}
    assert found({"steps": 5}, {"jets": 50}, {"max_time": "1h"}) == {"max_time": "1h"}
    assert found({"steps": 5, "jets": None}, {"jets": 50}, {}) == {"jets": 50}
    assert found({"jets": 50}, overrides=["train.steps=3"]) == {"steps": 3}
    assert found({"jets": 50}, overrides=["train.jets=null"]) == {"steps": 100_000}


def test_two_budgets_of_one_source_are_refused():
    with pytest.raises(ConfigError, match=r"^layer 1: train = .*: steps and jets are both given"):
        found({"steps": 3}, {"steps": 5, "jets": 50})
    with pytest.raises(ConfigError, match=r"^train\.steps and train\.max_time are both given"):
        found(overrides=["train.steps=3", "train.max_time=2h"])


def test_a_resolved_config_comes_back_with_its_budget(tmp_path):
    words = Layer("words", {"out": str(tmp_path), "data": {"train": "a.h5", "val": "b.h5"}})
    hours = Layer("more", {**words.settings, "train": {"max_time": "1h30m"}})
    for layer, kind in ((words, "steps"), (hours, "max_time")):
        cfg = load_config("ssfm", "tiny", layer)
        (tmp_path / "config.yaml").write_text(to_yaml(cfg))
        again = load_config("ssfm", "tiny", words, config=tmp_path / "config.yaml")
        assert isinstance(again, PretrainConfig)
        assert again == cfg
        assert getattr(again.train, kind) is not None


def test_a_finetuning_is_shorter_than_a_pretraining():
    assert FinetuneConfig.model_fields["train"].default.steps == 20_000
