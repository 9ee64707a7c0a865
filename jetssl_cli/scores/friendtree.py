"""Scores as a ROOT file: a TTree with one entry for each jet, in the order of the data file.

    score_<class> float32   label int32   <jet feature> float32

The tree can be a friend of any other with the same jets in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jetssl_cli.data.place import appearing
from jetssl_cli.errors import DataError
from jetssl_cli.scores.provenance import Provenance

TREE = "scores"
ABOUT = "about"
"""Name of the string beside the tree: JSON of where the scores come from."""


class TreeWriter:
    """Takes the jets chunk by chunk; made by ``write_tree``."""

    def __init__(self, tree: Any, classes: Sequence[str], jet_columns: Sequence[str]) -> None:
        self._tree, self._classes, self._jet_columns = tree, classes, jet_columns

    def append(
        self,
        scores: Float[np.ndarray, "J C"],
        labels: Int[np.ndarray, " J"],
        jets: Float[np.ndarray, "J G"],
    ) -> None:
        """Add a chunk of jets, which becomes one basket of each branch."""
        named = zip(_branches(self._classes), scores.T, strict=True)
        columns = zip(self._jet_columns, jets.T, strict=True)
        branches = {name: column.astype(np.float32) for name, column in (*named, *columns)}
        self._tree.extend({**branches, "label": labels.astype(np.int32)})


@contextmanager
def write_tree(
    path: Path, *, classes: Sequence[str], jet_columns: Sequence[str], origin: Provenance
) -> Iterator[TreeWriter]:
    """Write a ROOT file that appears under its name only when it is complete.

    Raises:
        DataError: the file cannot be written.
    """
    import uproot

    names = [*_branches(classes), *jet_columns, "label"]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: two branches would have the name {twice[0]!r}")
    types = dict.fromkeys(names[:-1], np.float32)
    about = {"classes": list(classes), **origin.attributes()}
    compression = uproot.ZLIB(1)
    with appearing(path) as partial, uproot.recreate(partial, compression=compression) as file:
        file[ABOUT] = json.dumps(about)
        tree = file.mktree(TREE, {**types, "label": np.int32}, title="scores of jets")
        yield TreeWriter(tree, classes, jet_columns)


def _branches(classes: Sequence[str]) -> list[str]:
    """Names that are valid in ROOT's expressions."""
    return [f"score_{''.join(c if c.isalnum() else '_' for c in name)}" for name in classes]
