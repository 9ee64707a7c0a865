"""The branches of a simulated data set: names, types, and which have a list for each jet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

Branches = dict[str, NDArray[Any]]
"""Branch -> values: of jets one each, of lists those of all jets end to end."""


@dataclass(frozen=True)
class Schema:
    """Branches of a tree, in their order."""

    types: Mapping[str, Any]
    lists: Mapping[str, tuple[str, str]]
    """How names of lists begin -> the counter in the file, the branch with the lengths."""

    def list_of(self, name: str) -> tuple[str, str] | None:
        """Counter and lengths of a branch; none where there is one number for each jet."""
        return next((of for start, of in self.lists.items() if name.startswith(start)), None)

    def counter(self, name: str) -> str:
        """The counter of a list."""
        found = self.list_of(name)
        assert found is not None
        return found[0]

    def root_types(self) -> dict[str, Any]:
        """Types as ``mktree`` of uproot wants them."""
        return {
            name: f"var * {np.dtype(kind)}" if self.list_of(name) else np.dtype(kind)
            for name, kind in self.types.items()
        }

    def as_lists(self, branches: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The branches with a list for each jet where there is one."""
        shaped: dict[str, Any] = {}
        for name, values in branches.items():
            of = self.list_of(name)
            sizes = branches[of[1]].astype(np.int64) if of else None
            shaped[name] = values if sizes is None else ak.unflatten(values, sizes)
        return shaped

    def select(self, branches: Branches, keep: Bool[np.ndarray, " J"]) -> Branches:
        """The jets that ``keep`` marks."""
        kept = {}
        for name, values in branches.items():
            of = self.list_of(name)
            kept[name] = values[np.repeat(keep, branches[of[1]].astype(np.int64)) if of else keep]
        return kept
