"""A run before its first step: what is trained, on which jets, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.sample import Sample, look
from jetssl_cli.data.schema import Schema
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.progress import note
from jetssl_cli.runs.budget import Budget
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.processes import Place
from jetssl_cli.runs.run_config import RunConfig

Readers = tuple[JetReader, JetReader]
"""Of the training jets, and of the validation jets."""


@dataclass(frozen=True)
class Prepared:
    """A run before its first step; nothing of it is written."""

    cfg: RunConfig
    schema: Schema
    """What the columns of its data mean."""
    objective: Objective
    """What is trained."""
    weights: Mapping[str, nn.Module]
    """What is saved in the end: file name -> module."""
    through: Callable[[Readers], Readers] | None = None
    """The readers go through this function, if there is one."""
    backbone: str | None = None
    """Hash of what its backbone gives, if it has one."""

    @property
    def reads_classes(self) -> bool:
        """The classes of the data matter: for a probe, or a classifier of them."""
        mixed = self.cfg.data.mixture is not None
        return (self.objective.classifies and not mixed) or not self.objective.downstream

    def readers(self, place: Place) -> Readers:
        """The jets of one process.

        Raises:
            DataError: the data cannot be read, or lack what the objective needs.
        """
        data, train, objective = self.cfg.data, self.cfg.train, self.objective
        reader = data.train_reader(
            objective.subjet_radius,
            truth=objective.truth,
            batch_size=place.jets_at_a_time(data.batch_size, train.accumulate),
            seed=train.seed,
            rank=place.rank,
            ranks=place.ranks,
        )
        readers = reader, data.val_stream(objective.subjet_radius, objective.truth)
        return readers if self.through is None else self.through(readers)

    def budget(
        self, place: Place, reader: JetReader, agree: Callable[[float], float] = float
    ) -> Budget:
        """How long the run goes on; ``agree`` as in ``Budget``.

        Raises:
            ConfigError: the backbone is to be trained from a step on that does not come.
        """
        parts = self.cfg.train.accumulate
        size = place.jets_at_a_time(self.cfg.data.batch_size, parts)
        jets = min(size, reader.num_jets // place.ranks) * place.ranks * parts
        budget = Budget(self.cfg.train, jets, agree=agree)
        late, last = self.cfg.pace.unfreeze_at, budget.last_step
        if last is not None and late >= last:
            raise ConfigError(f"unfreeze_at = {late}: the run ends after step {last}")
        return budget


def read_schema(data: DataConfig) -> Schema:
    """What the columns of the data mean.

    Raises:
        DataError: a file cannot be read, or files do not fit together.
    """
    schema, _ = look([*data.train, *data.val], apart=False)
    return schema


def note_single_class(sample: Sample) -> None:
    """Tell the user if the first jets of the files, which have more, are all of one class.

    So it is where files that hold one class each have not been merged.

    Raises:
        DataError: a file cannot be read.
    """
    if sample.is_all or len(sample.schema.classes) == 1:
        return
    if (name := sample.only_class()) is not None:
        note(
            f"{sample.name}: the first {sample.num_jets:,} jets, which alone are used here, are "
            f"all {name}; jetssl merge mixes the classes"
        )
