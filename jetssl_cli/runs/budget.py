"""How long a run goes on: for so many optimizer steps, so many jets, or so much time.

Everything that runs over the whole training follows from where a run stands in its budget: the
learning rate, what ``after_step`` is told, the bar on the terminal, the end.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt, model_validator

from jetssl_cli.config import Layer, Strict, override_layer
from jetssl_cli.errors import ConfigError

KINDS = ("steps", "jets", "max_time")
STEPS = 100_000
"""Where nothing is said."""
SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in SECONDS))


def seconds(duration: str) -> float:
    """Seconds of a duration such as 2d, 24h, 90m, 1h30m or 45s.

    Raises:
        ValueError: it is no such duration, or nothing.
    """
    found = DURATION.fullmatch(duration)
    parts = found.groupdict() if found else {}
    total = sum(float(number) * SECONDS[unit] for unit, number in parts.items() if number)
    if not 0 < total < math.inf:
        raise ValueError("a time such as 2d, 24h, 1h30m, 90m or 45s is needed")
    return total


def _duration(value: object) -> object:
    if value is not None:
        seconds(str(value))
    return value


class BudgetConfig(Strict):
    """The length of a run, in one of three ways."""

    steps: PositiveInt | None = None
    """Optimizer steps; 100,000 if nothing else ends the run."""
    jets: PositiveInt | None = None
    """Jets seen, counted again in every epoch."""
    max_time: Annotated[str, BeforeValidator(_duration)] | None = None
    """Time of the training, validations included, such as 24h, 90m or 1h30m."""

    @model_validator(mode="before")
    @classmethod
    def _some_budget(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping) and all(settings.get(kind) is None for kind in KINDS):
            return {**settings, "steps": STEPS}
        return settings

    @model_validator(mode="after")
    def _one_budget(self) -> BudgetConfig:
        _only_one({kind: getattr(self, kind) for kind in KINDS}, "{}")
        return self


def latest(layers: Sequence[Layer], overrides: Sequence[str]) -> list[Layer]:
    """The same layers, the overrides among them, each budget replacing those of layers before it.

    Raises:
        ConfigError: the overrides give two budgets.
    """
    words = [override_layer(item) for item in overrides]
    given = {kind: value for word in words for kind, value in _given(word).items()}
    try:
        _only_one(given, "train.{}")
    except ValueError as err:
        raise ConfigError(str(err)) from None
    return [_alone(layer) for layer in (*layers, *words)]


def _given(layer: Layer) -> dict[str, Any]:
    train = layer.settings.get("train")
    settings = train if isinstance(train, Mapping) else {}
    return {kind: settings[kind] for kind in KINDS if settings.get(kind) is not None}


def _alone(layer: Layer) -> Layer:
    if not _given(layer):
        return layer
    train = dict.fromkeys(KINDS) | dict(layer.settings["train"])
    return Layer(layer.source, {**layer.settings, "train": train})


def _only_one(given: Mapping[str, object], form: str) -> None:
    names = [form.format(kind) for kind, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are both given; one of them ends a run")


class Budget:
    """Where a run stands in its budget. ``steps`` and ``seconds`` are all that a snapshot needs."""

    def __init__(
        self,
        cfg: BudgetConfig,
        jets_per_step: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        agree: Callable[[float], float] = float,
    ) -> None:
        """Begin at zero.

        Args:
            cfg: what ends the run.
            jets_per_step: jets of an optimizer step, in all processes together.
            clock: gives seconds.
            agree: what all processes take for the seconds that one of them has measured.
        """
        self.steps, self.seconds = 0, 0.0
        self.jets_per_step = jets_per_step
        self._jets = cfg.jets
        self._limit = seconds(cfg.max_time) if cfg.max_time else None
        self._clock, self._agree = clock, agree
        self._begin: float | None = None
        self._cold: float | None = None
        """Seconds of the first step since the start."""
        self.last_step = math.ceil(cfg.jets / jets_per_step) if cfg.jets else cfg.steps
        """The step that ends the run, where it is known beforehand."""

    def start(self) -> None:
        """Start the clock, or start it again where it stood."""
        self._begin = self._clock() - self.seconds
        self._cold = None

    def step(self) -> None:
        """Count an optimizer step."""
        assert self._begin is not None, "the clock has not been started"
        self.steps += 1
        if self._limit is not None:
            before, self.seconds = self.seconds, self._agree(self._clock() - self._begin)
            self._cold = self.seconds - before if self._cold is None else self._cold

    @property
    def progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return min(self.done / self.total, 1.0)

    @property
    def finished(self) -> bool:
        """The run is at its end."""
        return self.done >= self.total

    @property
    def expected_steps(self) -> int | float:
        """Steps of the whole run; where time ends it, those to be expected at the pace so far.

        The first step after a start says nothing of the pace, as compilers and caches are cold.
        """
        if self._limit is None:
            return self.last_step or 0
        steps = self.steps - (self._cold is not None)
        seconds = self.seconds - (self._cold or 0.0)
        left = max(self._limit - self.seconds, 0.0)
        return self.steps + left * steps / seconds if steps and seconds else math.inf

    @property
    def total(self) -> int | float:
        """The budget, in its own unit."""
        return self._limit or self._jets or self.last_step or 0

    @property
    def done(self) -> int | float:
        """What of the budget is used up; at most a step more than there is."""
        if self._limit is not None:
            return self.seconds
        return self.steps if self._jets is None else self.steps * self.jets_per_step

    @property
    def unit(self) -> str:
        """Unit of the budget."""
        return "s" if self._limit else "steps" if self._jets is None else "jets"
