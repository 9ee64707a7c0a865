"""Which tracks of a jet come from one vertex: pairs of tracks are judged, then grouped.

    track i --> encoder --> x_i --+--> x_i + x_j, |x_i - x_j| --> MLP --> s_ij
    track j --> encoder --> x_j --+

    loss = mean over pairs i < j of known vertex of  -log sigmoid(+- s_ij),  + in one vertex, - not

(x is a linear map of the vector of the track and the mean over its jet.) Pairs above a threshold
are joined, and what is connected is one vertex. The threshold is the one with the best mean
adjusted Rand index on the validation jets; it is a part of the weights. Shlomi et al.,
arXiv:2008.02831.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from jetssl_cli.batch import JetBatch
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import mlp
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.downstream import Downstream, DownstreamConfig
from jetssl_cli.objectives.pairs import Pairs
from jetssl_cli.objectives.totals import Totals

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Those that are tried."""


class VertexConfig(DownstreamConfig):
    """Settings of vertex finding."""

    name: Literal["vertex"] = "vertex"
    """Tells the methods apart."""
    width: PositiveInt = 128
    """Width of the vectors that are paired, and of the hidden layers of the head."""

    def build(self, encoder: Encoder, num_classes: int) -> Vertex:
        """Put a judge of pairs on top of the encoder; the classes of jets do not matter."""
        del num_classes
        return Vertex(self, encoder)


class Vertex(Downstream):
    """See the top of the module."""

    truth = {"vertex": None}  # noqa: RUF012
    threshold: Tensor

    def __init__(self, cfg: VertexConfig, encoder: Encoder) -> None:
        super().__init__(cfg, encoder)
        self.project = nn.Linear(2 * encoder.width, cfg.width)
        self.head = mlp(2 * cfg.width, cfg.width, cfg.width, 1)
        self.register_buffer("threshold", torch.tensor(0.5))
        number = len(THRESHOLDS)
        self.totals = Totals(jets=1, one_vertex=1, adjusted_rand=number)

    def pair_logits(self, batch: JetBatch, pairs: Pairs) -> Float[Tensor, " P"]:
        """Logit s of each pair; the same for (i, j) and (j, i)."""
        x = self.project(self.constituents(batch))
        one, other = x.index_select(0, pairs.first), x.index_select(0, pairs.second)
        logits: Tensor = self.head(torch.cat([one + other, (one - other).abs()], dim=1))
        return logits[:, 0]

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy of the pairs of tracks whose vertices are known."""
        del rng
        assert batch.truth is not None
        pairs, vertex = Pairs.of(batch.packing), batch.truth[:, 0]
        together, known = pairs.same(vertex), pairs.both(vertex >= 0)
        logits = self.pair_logits(batch, pairs).float()
        if not self.training:
            self._judge(pairs, logits.sigmoid(), together, known)
        errors = binary_cross_entropy_with_logits(logits, together.float(), reduction="none")
        return {"pairs": parallel.weighted_mean(errors, known.float())}

    def diagnostics(self) -> dict[str, float]:
        """Adjusted Rand index at the best threshold, which is taken from here on.

        Of jets with two tracks at least; beside it that of all tracks in one vertex.
        """
        totals = self.totals.take()
        jets = float(totals["jets"])
        if jets == 0:
            return {}
        best = int(totals["adjusted_rand"].argmax())
        self.threshold.fill_(THRESHOLDS[best])
        return {
            "adjusted_rand": float(totals["adjusted_rand"][best]) / jets,
            "adjusted_rand_of_one_vertex": float(totals["one_vertex"]) / jets,
            "threshold": THRESHOLDS[best],
        }

    @torch.no_grad()
    def _judge(self, pairs: Pairs, scores: Tensor, together: Tensor, known: Tensor) -> None:
        jets = torch.zeros(pairs.num_jets, dtype=torch.bool, device=scores.device)
        jets[pairs.jet[known]] = True

        def total(joined: Tensor) -> Tensor:
            return pairs.adjusted_rand(joined, together, known)[jets].sum()

        each = [total(pairs.same(pairs.components(scores > at))) for at in THRESHOLDS]
        all_in_one = total(torch.ones_like(together))
        self.totals.add(jets=jets.sum(), one_vertex=all_in_one, adjusted_rand=torch.stack(each))
