"""From the vectors of a jet's tokens to one vector: what probes and classifiers read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from jetssl_cli.batch import Packing
from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import plan
from jetssl_cli.encoder.encoder import Encoded
from jetssl_cli.encoder.transformer import Branch, CrossAttention, SwiGLU


class PoolConfig(Strict):
    """Size of an attention pool."""

    depth: PositiveInt = 2
    """Layers; each reads from the tokens, then transforms what it read."""
    width: PositiveInt = 128
    """Width of the pooled vector."""
    heads: PositiveInt = 4
    """Attention heads."""
    dropout: NonNegativeFloat = Field(default=0.2, lt=1)
    """Share of the numbers dropped in training, in each residual branch."""

    def build(self, tokens_width: int, outputs: int) -> AttentionPool:
        """Build a pool over tokens of this width, with a linear layer on top."""
        return AttentionPool(self, tokens_width, outputs)


class AttentionPool(nn.Module):
    """One learned query per jet attends to its tokens (Lee et al., arXiv:1810.00825, PMA)."""

    def __init__(self, cfg: PoolConfig, tokens_width: int, outputs: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, cfg.width) * 0.02)
        self.norm_tokens = nn.RMSNorm(tokens_width)
        self.layers = nn.ModuleList()
        for _ in range(cfg.depth):
            read = CrossAttention(cfg.width, cfg.heads, tokens_width)
            self.layers.append(Branch(read, cfg.width, None, cfg.dropout))
            self.layers.append(
                Branch(SwiGLU(cfg.width, 2 * cfg.width), cfg.width, None, cfg.dropout)
            )
        self.norm = nn.RMSNorm(cfg.width)
        self.head = nn.Linear(cfg.width, outputs)

    def forward(self, encoded: Encoded) -> Float[Tensor, "J outputs"]:
        """Outputs of each jet."""
        one_each = torch.arange(encoded.packing.num_jets + 1)
        queries = Packing(one_each, encoded.packing.device)
        attend = plan(queries, encoded.packing, backend=encoded.backend)
        memory = self.norm_tokens(encoded.tokens)
        x = self.query.expand(encoded.packing.num_jets, -1)
        for read, transform in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = transform(read(x, None, attend, memory), None)
        return self.head(self.norm(x))
