"""Classification of jets, from a pretrained backbone or from scratch: the sixth objective.

jet --> encoder --> tokens --> attention pool --> logits of the classes
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

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

    def loss_of(
        self, logits: Float[Tensor, "J C"], labels: Int[Tensor, " J"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy, in training with label smoothing."""
        smoothing = self.cfg.label_smoothing if self.training else 0.0
        loss = cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        return {"cross_entropy": loss}
