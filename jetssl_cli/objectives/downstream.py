"""What the tasks share for which a backbone is finetuned: the encoder, frozen or not, and heads."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoded, Encoder
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.objectives.objective import Objective


class DownstreamConfig(Strict):
    """Settings of any task."""

    frozen: bool = False
    """Keep the backbone as it is, and train the head alone."""


class Downstream(Objective):
    """An encoder, frozen or not, that something is trained on top of."""

    downstream = True

    def __init__(self, cfg: DownstreamConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = encoder.requires_grad_(not cfg.frozen)

    def train(self, mode: bool = True) -> Downstream:
        """Switch to training; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.cfg.frozen:
            self.encoder.eval()
        return self

    def encode(self, batch: JetBatch) -> Encoded:
        """Vectors of all tokens; without gradients if the backbone is frozen."""
        with torch.no_grad() if self.cfg.frozen else nullcontext():
            encoded: Encoded = self.encoder(batch)
        return encoded

    def constituents(self, batch: JetBatch) -> Float[Tensor, "T twice_D"]:
        """The vector of each constituent, and behind it the mean over those of its jet."""
        x = self.encode(batch).constituents
        packing = batch.packing
        nothing = torch.zeros(packing.num_jets, x.shape[1], device=x.device)
        total = nothing.index_add(0, packing.owner, x.float())  # bf16 would round each addition
        mean = (total / packing.sizes.clamp_min(1)[:, None]).to(x.dtype)
        return torch.cat([x, mean.index_select(0, packing.owner)], dim=1)


class JetClassifierConfig(DownstreamConfig):
    """Settings of an attention pool on top of the encoder."""

    pool: PoolConfig = PoolConfig()
    """The head."""


class JetClassifier(Downstream):
    """Encoder, attention pool, logits of the classes of a jet."""

    classifies = True

    def __init__(self, cfg: JetClassifierConfig, encoder: Encoder, num_classes: int) -> None:
        super().__init__(cfg, encoder)
        self.pool = cfg.pool.build(encoder.width, num_classes)

    def logits(self, batch: JetBatch) -> Float[Tensor, "J C"]:
        """Logits of the classes."""
        outputs: Tensor = self.pool(self.encode(batch))
        return outputs

    def loss_of(
        self, logits: Float[Tensor, "J C"], labels: Int[Tensor, " J"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy."""
        return {"cross_entropy": cross_entropy(logits.float(), labels)}

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """That of the logits; dropout draws from the global generator."""
        del rng
        return self.loss_of(self.logits(batch), batch.labels)
