"""Classification of jets, from a pretrained backbone or from scratch: the sixth objective.

jet --> encoder --> tokens --> attention pool --> logits of the classes
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from jetssl_cli.batch import JetBatch
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.objectives.downstream import JetClassifier, JetClassifierConfig


class SupervisedConfig(JetClassifierConfig):
    """Settings of classification."""

    name: Literal["supervised"] = "supervised"
    """Tells the methods apart."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Probability that the target spreads evenly over all classes (arXiv:1512.00567, section 7)."""

    def build(self, encoder: Encoder, num_classes: int) -> Supervised:
        """Put a classifier on top of the encoder."""
        return Supervised(self, encoder, num_classes)


class Supervised(JetClassifier):
    """See the top of the module."""

    cfg: SupervisedConfig

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy with label smoothing; dropout draws from the global generator."""
        del rng
        smoothing = self.cfg.label_smoothing if self.training else 0.0
        logits = self.logits(batch).float()
        return {"cross_entropy": cross_entropy(logits, batch.labels, label_smoothing=smoothing)}
