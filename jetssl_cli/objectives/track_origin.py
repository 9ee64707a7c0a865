"""Where each track of a jet comes from: primary vertex, c hadron, b hadron, or something else.

jet --> encoder --> vector of each track, mean over its jet --> MLP --> logits of the origins

    loss = sum_t w(y_t) (-log p_t(y_t)) / sum_t w(y_t),    w(c) = (tracks / tracks of origin c)^a

over the tracks of known origin y_t. With a = 1 all origins weigh the same, as in the balanced
accuracy; with a = 0 all tracks do. It is an auxiliary task of ATL-PHYS-PUB-2022-027.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from jetssl_cli.batch import JetBatch
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import mlp
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.downstream import Downstream, DownstreamConfig
from jetssl_cli.objectives.totals import Totals

ORIGINS = ("primary", "from_c", "from_b", "other")
"""What the numbers of the truth mean, in their order."""


class TrackOriginConfig(DownstreamConfig):
    """Settings of the classification of tracks."""

    name: Literal["track-origin"] = "track-origin"
    """Tells the methods apart."""
    width: PositiveInt = 128
    """Width of the hidden layers of the head."""
    balance: float = Field(default=1.0, ge=0, le=1)
    """a: 1 gives all origins the same weight, 0 all tracks."""

    def build(self, encoder: Encoder, num_classes: int) -> TrackOrigin:
        """Put a classifier of tracks on top of the encoder; that of jets does not matter."""
        del num_classes
        return TrackOrigin(self, encoder)


class TrackOrigin(Downstream):
    """See the top of the module."""

    truth = {"origin": ORIGINS}  # noqa: RUF012
    cfg: TrackOriginConfig
    counts: Tensor

    def __init__(self, cfg: TrackOriginConfig, encoder: Encoder) -> None:
        super().__init__(cfg, encoder)
        self.head = mlp(2 * encoder.width, cfg.width, cfg.width, len(ORIGINS))
        self.register_buffer("counts", torch.ones(len(ORIGINS), dtype=torch.float64))
        self.totals = Totals(confusion=len(ORIGINS) ** 2)

    def track_logits(self, batch: JetBatch) -> Float[Tensor, "T C"]:
        """Logits of the origins of each track."""
        logits: Tensor = self.head(self.constituents(batch))
        return logits

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Weighted cross-entropy of the tracks whose origin is known.

        The tracks of each origin are counted in training, from the start, one more than there were.
        """
        del rng
        assert batch.truth is not None
        origin = batch.truth[:, 0]
        known = (origin >= 0) & (origin < len(ORIGINS))
        origin = origin.where(known, 0)
        logits = self.track_logits(batch).float()
        if self.training:
            self.counts += parallel.summed(per_origin(origin, known))
        else:
            cells = origin * len(ORIGINS) + logits.argmax(1)
            self.totals.add(confusion=per_cell(cells, known))
        weights = (self.counts.sum() / self.counts).pow(self.cfg.balance).float()
        errors = cross_entropy(logits, origin, reduction="none")
        return {"cross_entropy": parallel.weighted_mean(errors, weights[origin] * known)}

    def diagnostics(self) -> dict[str, float]:
        """Balanced accuracy, and the recall of each origin, of the validation."""
        confusion = self.totals.take()["confusion"].view(len(ORIGINS), -1)
        number = confusion.sum(1)
        recall = confusion.diagonal() / number.clamp_min(1)
        present = number > 0
        if not present.any():
            return {}
        found = {"balanced_accuracy": float(recall[present].mean())}
        return found | {
            f"recall_{name}": float(recall[index])
            for index, name in enumerate(ORIGINS)
            if present[index]
        }


def per_origin(origin: Int[Tensor, " T"], known: Tensor) -> Float[Tensor, " C"]:
    """How many known tracks each origin has."""
    return (one_hot(origin, len(ORIGINS)) * known[:, None]).sum(0).double()


def per_cell(cells: Int[Tensor, " T"], known: Tensor) -> Float[Tensor, " cells"]:
    """How many known tracks fall into each cell of the confusion matrix."""
    return torch.zeros(len(ORIGINS) ** 2, dtype=torch.float64, device=cells.device).index_add(
        0, cells, known.double()
    )
