"""Feature scaling as part of the network: physical units in, standard normal numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.cache import cached, digest
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.quantiles import NUM_QUANTILES, QuantileScaler, quantiles
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.errors import DataError
from jetssl_cli.progress import Advance, note, progress

Column = NDArray[np.float32]

VERSION = 1
"""Of the fit; counted up when the same jets give other quantiles."""
SCALING_JETS = 1_000_000
"""A scaling is fitted on the first so many jets, unless told otherwise."""
TRIAL_JETS = 10_000
"""Enough to try a run that has no scaling yet."""


class Scaling(nn.Module):
    """Scales the constituent and jet features of a batch.

    A feature that only charged particles have is missing for neutral ones: left out of the fit,
    and 0, the middle of the distribution, after scaling.
    """

    absent: Bool[Tensor, "classes F"]

    def __init__(
        self,
        schema: Schema,
        constituents: Float[Tensor, "F N"],
        jets: Float[Tensor, "G N"],
    ) -> None:
        super().__init__()
        self.constituents = QuantileScaler(constituents)
        self.jets = QuantileScaler(jets)
        ids = np.arange(max(len(schema.ids), 1))  # all are 0 without any
        self.register_buffer("absent", torch.from_numpy(schema.missing(ids)), persistent=False)

    @classmethod
    def unfitted(cls, schema: Schema) -> Scaling:
        """A scaling of the right shape, to load weights into."""
        shape = len(schema.constituents), NUM_QUANTILES
        return cls(schema, torch.zeros(shape), torch.zeros(len(schema.jets), NUM_QUANTILES))

    def forward(self, batch: JetBatch) -> JetBatch:
        """The batch with scaled features."""
        present = (~self.absent).to(batch.features.dtype).index_select(0, batch.ids)
        features = self.constituents(batch.features).mul_(present)
        return replace(batch, features=features, jets=self.jets(batch.jets))

    def missing(self, batch: JetBatch) -> Bool[Tensor, "T F"]:
        """True where a constituent does not have a feature."""
        return self.absent.index_select(0, batch.ids)


def fitted_scaling(sample: Sample, *, trial: bool = False) -> Scaling:
    """The scaling of a sample: from the cache beside its first file, or fitted in one pass.

    Memory of a fit: 4 bytes for each value of the sample, and as much again for one column. That
    is 1.4 GB for a million jets of JetClass (7 features of 45 constituents).

    For a ``trial`` a fit is that of ``TRIAL_JETS`` jets, and not kept.

    Raises:
        DataError: a file cannot be read, or holds values that are not finite.
    """

    def fit() -> Scaling:
        used = sample.first(TRIAL_JETS) if trial else sample
        if used.num_jets < sample.num_jets:
            note(
                f"scaling: of {used.num_jets:,} jets; a run begins with that of "
                f"{sample.num_jets:,}, which is then kept"
            )
        with progress("scaling", used.num_jets, "jets") as advance:
            return fit_scaling(used.schema, _told(used.chunks(), advance), name=used.name)

    key = scaling_key(sample)
    empty = Scaling.unfitted(sample.schema)
    return cached(sample.files[0], "scaling", key, empty=empty, fit=fit, keep=not trial)


def scaling_key(sample: Sample) -> str:
    """A digest of all that determines the scaling of a sample."""
    return digest("scaling", VERSION, NUM_QUANTILES, sample.fingerprint)


def fit_scaling(schema: Schema, chunks: Iterable[JetArrays], *, name: str = "the jets") -> Scaling:
    """Fit the quantiles of every feature in one pass over the jets, which ``name`` stands for.

    Raises:
        DataError: a feature has a value that is not finite.
    """
    tokens: list[list[Column]] = [[] for _ in schema.constituents]
    jets: list[list[Column]] = [[] for _ in schema.jets]
    for chunk in chunks:
        there = ~schema.missing(chunk.ids)
        for index, feature in enumerate(schema.constituents):
            column = chunk.features[:, index]
            tokens[index].append(_copy(column[there[:, index]] if feature.charged_only else column))
        for index, parts in enumerate(jets):
            parts.append(_copy(chunk.jets[:, index]))
    return Scaling(
        schema,
        _fit_columns(schema.constituents, tokens, name),
        _fit_columns(schema.jets, jets, name),
    )


def _told(chunks: Iterable[JetArrays], advance: Advance) -> Iterator[JetArrays]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


def _copy(column: NDArray[np.floating[Any]]) -> Column:
    """The column alone, so that the table it is a part of can be freed."""
    return np.array(column, dtype=np.float32, order="C")


def _fit_columns(
    features: Sequence[Feature], columns: list[list[Column]], name: str
) -> Float[Tensor, "F N"]:
    """The quantiles of each column; its parts are freed before the next is begun."""
    fits = []
    for feature, parts in zip(features, columns, strict=True):
        column = np.concatenate([np.empty(0, np.float32), *parts])
        parts.clear()
        column.sort()
        if not np.isfinite(column[[0, -1]] if len(column) else 0).all():
            raise DataError(f"{name}: {feature.name}: holds values that are not finite")
        fits.append(torch.from_numpy(quantiles(column)))
    return torch.stack(fits)
