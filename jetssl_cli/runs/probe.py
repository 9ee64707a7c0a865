"""What an encoder has learned so far, measured while it trains and without touching it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jetssl_cli.batch import JetBatch
from jetssl_cli.encoder.encoder import Encoded, Encoder
from jetssl_cli.encoder.pool import PoolConfig


class Probe(nn.Module):
    """An attention pool on the detached vectors of an encoder, trained on the labels."""

    def __init__(self, encoder_width: int, num_classes: int) -> None:
        super().__init__()
        self.pool = PoolConfig(dropout=0.0).build(encoder_width, num_classes)

    def forward(self, encoded: Encoded) -> Float[Tensor, "J C"]:
        """Logits of the classes."""
        assert not encoded.tokens.requires_grad, "the encoder must not feel the probe"
        logits: Tensor = self.pool(encoded)
        return logits

    def loss(self, encoder: Encoder, batch: JetBatch) -> Float[Tensor, ""]:
        """Cross-entropy of the labels; no gradient reaches the encoder."""
        with torch.no_grad():
            encoded = encoder(batch)
        return cross_entropy(self(encoded).float(), batch.labels)


def jet_vectors(encoded: Encoded) -> Float[Tensor, "J D"]:
    """The mean vector of each jet's tokens."""
    tokens = encoded.tokens.float()  # a sum in half precision would blur the signs of collapse
    sums = tokens.new_zeros(encoded.packing.num_jets, tokens.shape[1])
    sums = sums.index_add(0, encoded.packing.owner, tokens)
    return sums / encoded.packing.sizes[:, None].clamp_min(1)


def effective_rank(vectors: Float[Tensor, "J D"]) -> float:
    """exp(entropy of the normalised singular values) of the centred vectors.

    Between 1 (all jets on one line: collapsed) and D; Roy and Vetterli, EUSIPCO 2007, (2). Of
    vectors that are not finite it is not a number.
    """
    if not vectors.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals((vectors - vectors.mean(0)).double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def feature_std(vectors: Float[Tensor, "J D"]) -> float:
    """Standard deviation over jets, averaged over the features; 0 when collapsed."""
    return float(vectors.std(0).mean()) if len(vectors) > 1 else 0.0
