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
from jetssl_cli.data.recipe import Feature, Schema
from jetssl_cli.data.sample import Sample
from jetssl_cli.errors import DataError
from jetssl_cli.progress import Advance, progress

Column = NDArray[np.float32]

VERSION = 1
"""Of the fit; counted up when the same jets give other quantiles."""
SCALING_JETS = 1_000_000
"""A scaling is fitted on the first so many jets, unless told otherwise."""
NUM_QUANTILES = 500
EDGE = 1e-7
"""As in scikit-learn: within this of the smallest or largest value counts as outside."""
LIMIT = 5.199337582605575
"""As in scikit-learn: normal quantile of ``1 - EDGE``; scaled values lie within +- this."""


class QuantileScaler(nn.Module):
    """Maps each column onto a standard normal distribution through its own quantiles.

    The same map as scikit-learn's ``QuantileTransformer(output_distribution="normal")``; computed
    in float64 on whichever device the values are.
    """

    quantiles: Float[Tensor, "F N"]

    def __init__(self, quantiles: Float[Tensor, "F N"]) -> None:
        super().__init__()
        self.register_buffer("quantiles", quantiles.double())

    def forward(self, values: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Scale physical values."""
        x = values.t().double().contiguous()  # (F, T)
        q = self.quantiles.double()
        last = q.shape[1] - 1
        first_at = torch.searchsorted(q, x)
        first_above = torch.searchsorted(q, x, right=True)
        below = (first_above - 1).clamp(0, last)
        above = first_above.clamp(0, last)
        q_below, q_above = q.gather(1, below), q.gather(1, above)
        part = ((x - q_below) / (q_above - q_below).clamp_min(torch.finfo(q.dtype).tiny)).clamp(
            0, 1
        )
        on_knot = first_at < first_above  # several equal quantiles: their middle
        place = torch.where(on_knot, (first_at + below) / 2, below + part * (above > below))
        share = place / last
        share = torch.where(x + EDGE > q[:, -1:], 1.0, share)
        share = torch.where(x - EDGE < q[:, :1], 0.0, share)
        return torch.special.ndtri(share).clamp(-LIMIT, LIMIT).t().to(values.dtype)

    def inverse(self, scaled: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Physical values from scaled ones."""
        q = self.quantiles.double()
        last = q.shape[1] - 1
        place = torch.special.ndtr(scaled.t().double()) * last
        below = place.floor().long().clamp(0, last - 1)
        low, high = q.gather(1, below), q.gather(1, below + 1)
        return (low + (place - below) * (high - low)).t().to(scaled.dtype)


class Scaling(nn.Module):
    """Scales the constituent and jet features of a batch.

    A feature that only charged particles have is missing for neutral ones: left out of the fit,
    and 0, the middle of the distribution, after scaling.
    """

    charged_only: Bool[Tensor, " F"]
    neutral: Bool[Tensor, " classes"]

    def __init__(
        self,
        schema: Schema,
        constituents: Float[Tensor, "F N"],
        jets: Float[Tensor, "G N"],
    ) -> None:
        super().__init__()
        self.constituents = QuantileScaler(constituents)
        self.jets = QuantileScaler(jets)
        charged_only = torch.tensor([feature.charged_only for feature in schema.constituents])
        neutral = torch.zeros(
            max(len(schema.ids), 1), dtype=torch.bool
        )  # ids are 0 if there are none
        neutral[list(schema.neutral_ids)] = True
        self.register_buffer("charged_only", charged_only, persistent=False)
        self.register_buffer("neutral", neutral, persistent=False)

    @classmethod
    def unfitted(cls, schema: Schema) -> Scaling:
        """A scaling of the right shape, to load weights into."""
        shape = len(schema.constituents), NUM_QUANTILES
        return cls(schema, torch.zeros(shape), torch.zeros(len(schema.jets), NUM_QUANTILES))

    def forward(self, batch: JetBatch) -> JetBatch:
        """The batch with scaled features."""
        features = self.constituents(batch.features).masked_fill(self.missing(batch), 0.0)
        return replace(batch, features=features, jets=self.jets(batch.jets))

    def missing(self, batch: JetBatch) -> Bool[Tensor, "T F"]:
        """True where a constituent does not have a feature."""
        return self.neutral[batch.ids][:, None] & self.charged_only


def fitted_scaling(sample: Sample) -> Scaling:
    """The scaling of a sample: from the cache beside its first file, or fitted in one pass.

    Memory of a fit: 4 bytes for each value of the sample, and as much again for one column. That
    is 1.4 GB for a million jets of JetClass (7 features of 45 constituents).

    Raises:
        DataError: a file cannot be read, or holds values that are not finite.
    """

    def fit() -> Scaling:
        with progress("scaling", sample.num_jets, "jets") as advance:
            return fit_scaling(sample.schema, _told(sample.chunks(), advance), name=sample.name)

    key = scaling_key(sample)
    empty = Scaling.unfitted(sample.schema)
    return cached(sample.files[0], "scaling", key, empty=empty, fit=fit)


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
        charged = ~np.isin(chunk.ids, schema.neutral_ids)
        for index, feature in enumerate(schema.constituents):
            column = chunk.features[:, index]
            tokens[index].append(_copy(column[charged] if feature.charged_only else column))
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


def quantiles(column: Column) -> NDArray[np.float64]:
    """Quantiles of a sorted column, (NUM_QUANTILES,): zeros if it is empty.

    The same numbers, bit for bit, as ``np.percentile`` finds in a float64 copy of the column.
    """
    if len(column) == 0:
        return np.zeros(NUM_QUANTILES)
    percents = np.linspace(0, 1, NUM_QUANTILES) * 100  # ties depend on this rounding
    last = len(column) - 1
    place = last * (percents / 100)
    below = np.minimum(place.astype(np.int64), last)
    part = place - below
    low = column[below].astype(np.float64)
    high = column[np.minimum(below + 1, last)].astype(np.float64)
    step = high - low
    between = np.where(part < 0.5, low + step * part, high - step * (1 - part))
    found: NDArray[np.float64] = np.maximum.accumulate(between)
    return found
