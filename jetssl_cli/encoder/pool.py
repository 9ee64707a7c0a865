"""From the vectors of a jet's tokens to one vector: what probes and classifiers read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from jetssl_cli.batch import Packing
from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import Attend, plan
from jetssl_cli.encoder.encoder import Encoded
from jetssl_cli.encoder.transformer import Branch, CrossAttention, RMSNorm, SwiGLU


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

    @model_validator(mode="after")
    def _heads_divide(self) -> PoolConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def build(self, tokens_width: int, outputs: int) -> AttentionPool:
        """Build a pool over tokens of this width, with a linear layer on top."""
        return AttentionPool(self, tokens_width, outputs)


class AttentionPool(nn.Module):
    """One learned query per jet attends to its tokens (Lee et al., arXiv:1810.00825, PMA)."""

    def __init__(self, cfg: PoolConfig, tokens_width: int, outputs: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, cfg.width) * 0.02)
        self.norm_tokens = RMSNorm(tokens_width)
        self.layers = nn.ModuleList()
        for _ in range(cfg.depth):
            read = CrossAttention(cfg.width, cfg.heads, tokens_width)
            self.layers.append(Branch(read, cfg.width, None, cfg.dropout))
            self.layers.append(
                Branch(SwiGLU(cfg.width, 2 * cfg.width), cfg.width, None, cfg.dropout)
            )
        self.norm = RMSNorm(cfg.width)
        self.head = nn.Linear(cfg.width, outputs)

    def forward(self, encoded: Encoded) -> Float[Tensor, "J outputs"]:
        """Outputs of each jet."""
        one_each = torch.arange(encoded.packing.num_jets + 1)
        queries = Packing(one_each, encoded.packing.device, exact=True)
        attend = plan(queries, encoded.packing, backend=encoded.backend)
        x = self.query.expand(encoded.packing.num_jets, -1)
        return self.run(x, attend, encoded.rows)

    def run(self, x: Tensor, attend: Attend, tokens: Tensor) -> Tensor:
        """Outputs of each query; ``attend`` knows which tokens are its own.

        The last layer stays in single precision, as half would make ties among the outputs.
        """
        memory = self.norm_tokens(tokens)
        for read, transform in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = transform(read(x, None, attend, memory), None)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x))
