"""The end of a training that is no longer finite; the jets of that step are set aside.

    RUN/diverged/step-400.h5    a data file of these jets as they are in the data; its sources say
                                which they are. Of further processes: step-400-process-1.h5

The step alone tells which jets they are, since the place of a reader is a function of it: nothing
is kept while the training goes well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.write import write
from jetssl_cli.errors import JetSSLError, RunError
from jetssl_cli.progress import warn
from jetssl_cli.runs.processes import Hosts

FOLDER = "diverged"
SHOWN = 60
"""Characters of the list of jets in a message."""
NEVER = 2**62
"""A step that no run comes to."""


class Divergence:
    """Notes on the device whether a training is finite, and ends it where it is not."""

    def __init__(
        self,
        run: Path,
        readers: tuple[JetReader, JetReader],
        *,
        seed: int,
        parts: int,
        rank: int,
        hosts: Hosts,
    ) -> None:
        """Begin with a training that is finite.

        Args:
            run: folder of the run.
            readers: of the training jets, and of the validation jets.
            seed: of the reader.
            parts: batches of the reader in a step.
            rank: number of this process.
            hosts: the other processes.
        """
        self._run, self._readers = run, readers
        self._seed, self._parts, self._rank, self._hosts = seed, parts, rank, hosts
        self._first: Tensor | None = None

    def note(self, bad: Tensor, step: int) -> None:
        """Note the step, from 0, if it is the first bad one; the device is not asked for it."""
        noted = torch.where(bad, step, NEVER)
        self._first = noted if self._first is None else torch.minimum(self._first, noted)

    def stop(self) -> None:
        """End the training if it was not finite in any process; all of them have to call this.

        Raises:
            RunError: says at which step, and for which jets.
        """
        own = NEVER if self._first is None else int(self._first)  # waits for the device
        step = round(-self._hosts.most([-float(own)])[0])
        if step == NEVER:
            return
        if own == step:
            seed, parts, rank = self._seed, self._parts, self._rank
            set_aside(self._run, self._readers[0], seed=seed, step=step, parts=parts, rank=rank)
        self._hosts.most([0.0])  # all wait until all have written
        raise RunError(
            f"the loss or its gradient became non-finite at step {step}; nothing was saved"
            f"{told(self._run, step)}"
        )

    def stop_at_validation(self, found: Mapping[str, float], steps: int) -> None:
        """End the training if what a validation has found is not finite.

        Raises:
            RunError: says what, and where the jets are.
        """
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            first, *others = self._readers[1].files
            files = f"{first} and {len(others)} more" if others else f"{first}"
            raise RunError(
                f"{bad[0]} is not finite after step {steps}; nothing was saved: are all jets of "
                f"{files} sound?"
            )


def set_aside(run: Path, reader: JetReader, *, seed: int, step: int, parts: int, rank: int) -> None:
    """Write the jets that this process had at a step; what goes wrong costs a warning.

    Args:
        run: folder of the run.
        reader: of the training jets.
        seed: of the reader.
        step: number of the step, from 0.
        parts: batches of the reader in a step.
        rank: number of this process.
    """
    own = f"-process-{rank}" if rank else ""
    path = run / FOLDER / f"step-{step}{own}.h5"
    states = [reader.origin.state_after(seed, step * parts + part) for part in range(parts)]
    places = np.unique(np.concatenate([reader.places(state) for state in states]), axis=0)
    numbers = {
        index: places[places[:, 0] == index, 1] for index in np.unique(places[:, 0]).tolist()
    }
    try:
        sources = [
            f"{reader.files[index]}: jets {', '.join(map(str, jets.tolist()))}"
            for index, jets in numbers.items()
        ]
        with JaggedFile(reader.files[0]) as first:
            recipe = first.recipe
        with write(path, recipe, sources) as writer:
            for index, jets in numbers.items():
                with JaggedFile(reader.files[index]) as file:
                    writer.append(file.take(jets, truth=True).single())
    except JetSSLError as err:
        warn(f"the jets of step {step} could not be set aside: {err}")


def told(run: Path, step: int) -> str:
    """Which jets were set aside by all processes, and where; empty where none were."""
    lines = []
    for path in sorted((run / FOLDER).glob(f"step-{step}*.h5")):
        if path.stem != f"step-{step}" and not path.stem.startswith(f"step-{step}-"):
            continue
        with JaggedFile(path) as file:
            jets = "; ".join(map(_short, file.sources))
            lines.append(f"{path} holds its {file.num_jets:,} jets ({jets})")
    return "".join(f"; {line}" for line in lines)


def _short(source: str) -> str:
    name, _, numbers = source.rpartition(": jets ")
    shown = numbers if len(numbers) <= SHOWN else numbers[:SHOWN].rpartition(",")[0] + ", ..."
    return f"{name}: {shown}"
