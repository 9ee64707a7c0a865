"""ROOT files of simulated jets, whole or absent, that remember how they were made.

JetClass and the b-tagging set have ``std::vector<float>`` for each list. uproot writes the same
numbers as ``float[npart]`` arrays with a counter branch, such as ``npart``; all who read by uproot,
such as weaver and this package, read both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from jetssl_cli.data.place import appearing
from jetssl_cli.data.simulation.schema import Schema
from jetssl_cli.errors import DataError, reason

TREE = "tree"
SETTINGS = "simulation"
"""Name of the string beside the tree: JSON of the settings."""
COMPRESSION = uproot.ZLIB(4)

Settings = Mapping[str, Any]


def write(path: Path, parts: Sequence[Path], settings: Settings, schema: Schema) -> None:
    """Write parts, one after the other, into one file that appears when it is complete.

    Raises:
        DataError: it cannot be written.
    """
    with appearing(path) as partial, uproot.recreate(partial, compression=COMPRESSION) as file:
        file[SETTINGS] = json.dumps(settings, sort_keys=True)
        tree = file.mktree(TREE, schema.root_types(), counter_name=schema.counter, title="jets")
        for part in parts:
            tree.extend(schema.as_lists(read_part(part)))


def settings_of(path: Path) -> dict[str, Any]:
    """How a file was made.

    Raises:
        DataError: not a ROOT file, or not one of ours.
    """
    try:
        with uproot.open(path) as file:
            found: dict[str, Any] = json.loads(str(file[SETTINGS]))
            return found
    except Exception as err:  # uproot raises whatever the bytes provoke
        told = reason(err)[:200]
        raise DataError(f"{path}: is there already, and was not simulated: {told}") from None


def write_part(path: Path, branches: Mapping[str, NDArray[Any]]) -> None:
    """Keep the branches of some jets until the file they belong to is written.

    Raises:
        DataError: it cannot be written.
    """
    with appearing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **branches)


def read_part(path: Path) -> dict[str, NDArray[Any]]:
    """The branches that ``write_part`` kept."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def is_part(path: Path) -> bool:
    """Whether there is a part that can be read to its end; its checksums have to agree."""
    try:
        read_part(path)
    except Exception:  # zipfile and numpy raise whatever the bytes provoke
        return False
    return True
