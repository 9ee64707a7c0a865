"""The jets of the step at which a training became non-finite, set aside in the folder of the run.

    RUN/diverged/step-400.h5    a data file of these jets as they are in the data; its sources say
                                which they are. Of further processes: step-400-process-1.h5

The step alone tells which jets they are, since the place of a reader is a function of it: nothing
is kept while the training goes well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jetssl_cli.data.jagged import JaggedFile, write
from jetssl_cli.data.reader import JetReader
from jetssl_cli.errors import JetSSLError
from jetssl_cli.progress import warn

FOLDER = "diverged"
SHOWN = 60
"""Characters of the list of jets in a message."""


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
