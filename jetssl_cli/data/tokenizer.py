"""``jetssl tokenize``: constituents as words, by k-means over their scaled features.

The continuous features of a constituent are replaced by the number of the nearest of K centres,
found in the space of scaled features, where every feature has the same weight. The particle class
is no part of the token. Next-particle prediction predicts tokens; decoding makes constituents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from jetssl_cli.config import Strict
from jetssl_cli.data.cache import cached, digest
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import SCALING_JETS, Scaling, fitted_scaling
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.errors import DataError
from jetssl_cli.progress import Advance, note, progress

VERSION = 1
"""Of the fit; counted up when the same constituents give other centres."""
DISTANCES_AT_ONCE = 2**24
"""Distances that ``encode`` holds in memory at a time."""
BATCH = 8192


class Tokenizer(nn.Module):
    """K centres in the space of scaled features."""

    centres: Float[Tensor, "K F"]

    def __init__(self, centres: Float[Tensor, "K F"]) -> None:
        super().__init__()
        self.register_buffer("centres", centres)

    @classmethod
    def unfitted(cls, schema: Schema, clusters: int) -> Tokenizer:
        """A tokenizer of the right shape, to load weights into."""
        return cls(torch.zeros(clusters, len(schema.constituents)))

    def encode(self, scaled: Float[Tensor, "T F"]) -> Int[Tensor, " T"]:
        """The number of the nearest centre; of several, the first.

        Half precision would find others, so that none is used under autocast either.
        """
        rows = max(1, DISTANCES_AT_ONCE // len(self.centres))
        half_squares = self.centres.square().sum(dim=1) / 2
        # |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2), and |x|^2 is the same for all c
        parts = (scaled[start : start + rows] for start in range(0, max(len(scaled), 1), rows))
        with torch.autocast(scaled.device.type, enabled=False):
            return torch.cat([(x @ self.centres.t() - half_squares).argmax(dim=1) for x in parts])

    def decode(self, tokens: Int[Tensor, " T"]) -> Float[Tensor, "T F"]:
        """The scaled features of the centres."""
        return self.centres[tokens]


class TokenizeConfig(Strict):
    """What to fit a tokenizer on, and how."""

    files: tuple[Path, ...]
    """Jagged files; the tokenizer is kept beside the first."""
    clusters: PositiveInt = 1000
    """Number of tokens; 1,000 for tiny networks, 10,000 for base ones."""
    num_jets: PositiveInt = 20_000
    """It is fitted on the first so many jets."""
    max_constituents: PositiveInt = 64
    """And on the first so many constituents of each."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the clustering."""

    @property
    def sample(self) -> Sample:
        """The constituents to fit on."""
        return Sample(self.files, num_jets=self.num_jets, max_constituents=self.max_constituents)


class FeatureError(Strict):
    """How far decoded values are from true ones, in the unit of the feature."""

    name: str
    unit: str
    mean: float
    """Mean of the absolute difference."""
    p90: float
    """Nine in ten differ by less."""
    spread: float
    """Mean absolute deviation of the true values from their median: the error of one token."""


class TokenizeReport(Strict):
    """What a tokenizer loses."""

    clusters: int
    used: int
    """Centres that are the nearest to some constituent."""
    num_constituents: int
    """Constituents looked at."""
    errors: tuple[FeatureError, ...]


def tokenize(cfg: TokenizeConfig) -> TokenizeReport:
    """Fit a tokenizer, or take the one kept beside the data, and measure what it loses.

    The scaling is that of a pretraining, so that the tokens are those it would have.

    Raises:
        DataError: the files cannot be read, or hold fewer different constituents than clusters.
    """
    sample = cfg.sample
    many = Sample(cfg.files, num_jets=SCALING_JETS, max_constituents=cfg.max_constituents)
    scaling = fitted_scaling(many)
    tokenizer = fitted_tokenizer(cfg, scaling)
    with progress("tokenize", sample.num_jets, "jets") as advance:
        true, decoded, present, tokens = (
            torch.cat(parts)
            for parts in zip(*_decoded(sample, scaling, tokenizer, advance), strict=True)
        )
    features = enumerate(sample.schema.constituents)
    return TokenizeReport(
        clusters=cfg.clusters,
        used=len(np.unique(tokens.numpy())),
        num_constituents=len(tokens),
        errors=tuple(
            _error(feature, true[present[:, i], i], decoded[present[:, i], i])
            for i, feature in features
        ),
    )


def fitted_tokenizer(cfg: TokenizeConfig, scaling: Scaling, *, keep: bool = True) -> Tokenizer:
    """The tokenizer kept beside the data, or a new one, which is then kept there.

    Another scaling has other tokens.

    Raises:
        DataError: the files cannot be read, or hold fewer different constituents than clusters.
    """
    sample = cfg.sample
    quantiles = scaling.constituents.quantiles.cpu().numpy()
    return cached(
        sample.files[0],
        "tokenizer",
        digest("tokenizer", VERSION, sample.fingerprint, quantiles, cfg.clusters, cfg.seed),
        empty=Tokenizer.unfitted(sample.schema, cfg.clusters),
        fit=lambda: _fit(cfg, sample, scaling),
        keep=keep,
    )


def _fit(cfg: TokenizeConfig, sample: Sample, scaling: Scaling) -> Tokenizer:
    from sklearn.cluster import MiniBatchKMeans

    table = torch.cat([scaling(to_batch(jets)).features for jets in sample.chunks()]).numpy()
    distinct = len(np.unique(table, axis=0)) if len(table) < 100 * cfg.clusters else cfg.clusters
    if distinct < cfg.clusters:
        raise DataError(
            f"{sample.name}: {distinct} different constituents are too few for --clusters "
            f"{cfg.clusters}"
        )
    note(f"fitting {cfg.clusters:,} tokens to {len(table):,} constituents; many take minutes")
    means = MiniBatchKMeans(
        cfg.clusters, random_state=cfg.seed, n_init=1, batch_size=BATCH, compute_labels=False
    )
    means.fit(table)
    return Tokenizer(torch.from_numpy(np.asarray(means.cluster_centers_, np.float32)))


def _decoded(
    sample: Sample, scaling: Scaling, tokenizer: Tokenizer, advance: Advance
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of each chunk: true and decoded physical values, which of them are there, and tokens."""
    for jets in sample.chunks():
        batch = to_batch(jets)
        tokens = tokenizer.encode(scaling(batch).features)
        decoded = scaling.constituents.inverse(tokenizer.decode(tokens))
        yield batch.features, decoded, ~scaling.missing(batch), tokens
        advance(len(jets))


def _error(feature: Feature, true: Tensor, decoded: Tensor) -> FeatureError:
    values: NDArray[np.float64] = true.double().numpy()
    apart = np.abs(decoded.double().numpy() - values)
    if not len(values):
        return FeatureError(name=feature.name, unit=feature.unit, mean=0.0, p90=0.0, spread=0.0)
    return FeatureError(
        name=feature.name,
        unit=feature.unit,
        mean=float(apart.mean()),
        p90=float(np.quantile(apart, 0.9)),
        spread=float(np.abs(values - np.median(values)).mean()),
    )
