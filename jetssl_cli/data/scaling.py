"""Feature scaling as part of the network: physical units in, standard normal numbers out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import Schema

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
        missing = self.neutral[batch.ids][:, None] & self.charged_only
        features = self.constituents(batch.features).masked_fill(missing, 0.0)
        return replace(batch, features=features, jets=self.jets(batch.jets))


def fit_scaling(schema: Schema, chunks: Iterable[JetArrays]) -> Scaling:
    """Fit the quantiles of every feature on the jets of the chunks (all held in memory)."""
    jets = concatenate(list(chunks))
    neutral = np.isin(jets.ids, schema.neutral_ids)
    columns = [
        jets.features[~neutral, index] if feature.charged_only else jets.features[:, index]
        for index, feature in enumerate(schema.constituents)
    ]
    return Scaling(
        schema,
        torch.stack([_quantiles(column) for column in columns]),
        torch.stack([_quantiles(jets.jets[:, index]) for index in range(len(schema.jets))]),
    )


def _quantiles(column: NDArray[np.floating[Any]]) -> Tensor:
    if len(column) == 0:
        return torch.zeros(NUM_QUANTILES, dtype=torch.float64)
    percents = np.linspace(0, 1, NUM_QUANTILES) * 100  # ties depend on this rounding
    quantiles = np.percentile(column.astype(np.float64), percents)
    return torch.from_numpy(np.maximum.accumulate(quantiles))
