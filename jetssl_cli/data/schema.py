"""What the columns of a data file mean: what a network must be fed with."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer

from jetssl_cli.config import Strict


class Feature(Strict):
    """Name and unit of one stored column."""

    name: str
    unit: str
    charged_only: bool = False


class Schema(Strict):
    """What the columns of a converted file mean; what a network must be fed with."""

    constituents: tuple[Feature, ...]
    """Constituent features, in the order of the columns."""
    ids: tuple[str, ...]
    """Particle classes."""
    neutral_ids: tuple[int, ...]
    """Indices of the particle classes without a track."""
    truth: tuple[str, ...] = ()
    """Truth about each constituent, in the order of the columns."""
    jets: tuple[Feature, ...]
    """Jet features, in the order of the columns."""
    classes: tuple[str, ...]
    """Names of the jet classes, in the order of the labels."""

    def missing(self, ids: Integer[np.ndarray, " T"]) -> Bool[np.ndarray, "T F"]:
        """Where a constituent is neutral, by its particle class, and the feature of charged ones.

        The file has a 0 there, which is no value.
        """
        neutral = np.isin(ids, self.neutral_ids)
        charged_only = np.array([feature.charged_only for feature in self.constituents], np.bool_)
        return np.logical_and.outer(neutral, charged_only)
