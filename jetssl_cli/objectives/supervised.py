"""Classification of jets, from a pretrained backbone or from scratch: the sixth objective.

jet --> encoder --> tokens --> attention pool --> logits of the classes
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.objectives.objective import Objective


class SupervisedConfig(Strict):
    """Settings of classification."""

    name: Literal["supervised"] = "supervised"
    """Tells the methods apart."""
    frozen: bool = False
    """Keep the backbone as it is, and train the head alone."""
    pool: PoolConfig = PoolConfig()
    """The head."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Probability that the target spreads evenly over all classes (arXiv:1512.00567, section 7)."""

    def build(self, encoder: Encoder, num_classes: int) -> Supervised:
        """Put a classifier on top of the encoder."""
        return Supervised(self, encoder, num_classes)


class Supervised(Objective):
    """See the top of the module."""

    classifies = True

    def __init__(self, cfg: SupervisedConfig, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = encoder.requires_grad_(not cfg.frozen)
        self.pool = cfg.pool.build(encoder.width, num_classes)

    def train(self, mode: bool = True) -> Supervised:
        """Switch to training; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.cfg.frozen:
            self.encoder.eval()
        return self

    def logits(self, batch: JetBatch) -> Float[Tensor, "J C"]:
        """Logits of the classes."""
        with torch.no_grad() if self.cfg.frozen else nullcontext():
            encoded = self.encoder(batch)
        outputs: Tensor = self.pool(encoded)
        return outputs

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy with label smoothing; dropout draws from the global generator."""
        del rng
        smoothing = self.cfg.label_smoothing if self.training else 0.0
        logits = self.logits(batch).float()
        return {"cross_entropy": cross_entropy(logits, batch.labels, label_smoothing=smoothing)}
