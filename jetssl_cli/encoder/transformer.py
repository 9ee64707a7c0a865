"""Pre-norm transformer blocks on packed tokens, modulated jet by jet as in adaLN-Zero."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.attention import Attend

Tokens = Float[Tensor, "T D"]


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what it drives is switched off before training."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class SelfAttention(nn.Module):
    """Self-attention with RMS-normalised queries and keys (Henry et al., arXiv:2010.04245)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.norm = nn.RMSNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tokens, attend: Attend) -> Tokens:
        """Mix the tokens of each jet."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (T, H, K) each
        mixed = attend(self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype), v)
        return self.out(self.norm(mixed.flatten(1)))


class CrossAttention(nn.Module):
    """Attention of tokens to the tokens of a memory, with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.norm = nn.RMSNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tokens, attend: Attend, memory: Float[Tensor, "M E"]) -> Tokens:
        """Read from the memory of each jet."""
        q = self.q(x).unflatten(-1, (self.heads, -1))  # (T, H, K)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).unbind(1)  # (M, H, K) each
        mixed = attend(self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype), v)
        return self.out(self.norm(mixed.flatten(1)))


class SwiGLU(nn.Module):
    """Gated feed-forward layer: W2 (silu(W1 x) * W3 x); Shazeer, arXiv:2002.05202, (6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tokens) -> Tokens:
        """Transform each token by itself."""
        gate, value = self.gate_and_value(x).chunk(2, -1)
        return self.out(silu(gate) * value)


@dataclass(frozen=True)
class Context:
    """What modulates the blocks: one vector for each jet."""

    vectors: Float[Tensor, "J X"]
    packing: Packing
    """Packing of the tokens that are modulated."""


class Branch(nn.Module):
    """A residual branch: x + gate * layer(norm(x) * (1 + scale) + shift).

    Scale, shift and gate are linear in silu(context) and start at zero, as in adaLN-Zero (Peebles
    and Xie, arXiv:2212.09748, section 3.2). They are computed once per jet and spread over its
    tokens. Without a context the branch is the plain x + layer(norm(x)).
    """

    def __init__(
        self, layer: nn.Module, width: int, context_width: int | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.RMSNorm(width)
        self.modulation = ZeroLinear(context_width, 3 * width) if context_width else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tokens, context: Context | None, *inputs: object) -> Tokens:
        """Add the branch to ``x``; ``inputs`` go to the layer."""
        if self.modulation is None:
            return x + self.dropout(self.layer(self.norm(x), *inputs))
        assert context is not None
        of_jets = self.modulation(silu(context.vectors))  # (J, 3 D)
        modulation = of_jets.index_select(0, context.packing.owner)  # (T, 3 D)
        scale, shift, gate = modulation.chunk(3, -1)
        return x + gate * self.dropout(self.layer(self.norm(x) * (1 + scale) + shift, *inputs))


class Block(nn.Module):
    """Self-attention, then (with a memory) cross-attention, then a feed-forward layer."""

    def __init__(
        self, width: int, heads: int, context_width: int | None, memory_width: int | None = None
    ) -> None:
        super().__init__()
        self.attention = Branch(SelfAttention(width, heads), width, context_width)
        self.cross = (
            Branch(CrossAttention(width, heads, memory_width), width, context_width)
            if memory_width
            else None
        )
        self.feed_forward = Branch(SwiGLU(width, 2 * width), width, context_width)

    def forward(
        self,
        x: Tokens,
        context: Context | None,
        attend: Attend,
        attend_memory: Attend | None = None,
        memory: Tensor | None = None,
    ) -> Tokens:
        """Transform packed tokens."""
        x = self.attention(x, context, attend)
        if self.cross is not None:
            x = self.cross(x, context, attend_memory, memory)
        return self.feed_forward(x, context)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers; SiLU and LayerNorm after each but the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.SiLU(), nn.LayerNorm(after)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def fourier(t: Float[Tensor, " J"], num: int) -> Float[Tensor, "J two_num"]:
    """Cosines and sines of t in (0, 1) at the angular frequencies pi, 2 pi, ..., num pi."""
    angles = t[:, None] * torch.pi * torch.arange(1, num + 1, device=t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
