"""Pre-norm transformer blocks on packed tokens, modulated jet by jet as in adaLN-Zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jetssl_cli.batch import Owners
from jetssl_cli.encoder.attention import Attend, Tiled
from jetssl_cli.encoder.functions import (
    EPS,
    gated,
    layer_norm,
    linear,
    modulated_norm,
    rms_norm,
    rms_norm_beside,
    swiglu,
)

Tokens = Float[Tensor, "*T D"]
"""Packed, (T, D), or padded, (J, N, D)."""
Rows = Int[Tensor, " chosen"]
"""Numbers of packed tokens."""
Chosen = Float[Tensor, "*C D"]
"""All tokens, or those of the rows that were asked for."""


class Linear(nn.Linear):
    """A linear layer, with derivatives of our own on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis."""
        return linear(x, self.weight, self.bias)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what it drives is switched off before training."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """A token over its root mean square, times a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return rms_norm(x, self.weight)


class SelfAttention(nn.Module):
    """Self-attention with RMS-normalised queries and keys (Henry et al., arXiv:2010.04245)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.norm = RMSNorm(width)
        self.out = Linear(width, width)

    def forward(self, x: Tokens, attend: Attend, rows: Rows | None = None) -> Chosen:
        """Mix the tokens of each jet; with ``rows``, for these tokens alone."""
        parts = self._of_all(x) if rows is None else self._of_some(x, rows)
        mixed = _attended(attend, parts, self.norm_q, self.norm_k)
        return self.out(self.norm(mixed.flatten(-2)))

    def _of_all(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)),)

    def _of_some(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        width, layer = x.shape[-1], self.qkv
        q = linear(x.index_select(0, rows), layer.weight[:width], layer.bias[:width])
        kv = linear(x, layer.weight[width:], layer.bias[width:])
        parts = (q, 1), (kv, 2)
        return tuple(torch.unflatten(part, -1, (n, self.heads, -1)) for part, n in parts)


class CrossAttention(nn.Module):
    """Attention of tokens to the tokens of a memory, with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(memory_width, 2 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.norm = RMSNorm(width)
        self.out = Linear(width, width)

    def forward(self, x: Tokens, attend: Attend, memory: Float[Tensor, "*M E"]) -> Tokens:
        """Read from the memory of each jet."""
        q = self.q(x).unflatten(-1, (1, self.heads, -1))
        kv = self.kv(memory).unflatten(-1, (2, self.heads, -1))
        mixed = _attended(attend, (q, kv), self.norm_q, self.norm_k)
        return self.out(self.norm(mixed.flatten(-2)))


def _attended(
    attend: Attend, parts: Sequence[Tensor], norm_q: RMSNorm, norm_k: RMSNorm
) -> Float[Tensor, "*T H K"]:
    """Attention of normalised queries to normalised keys.

    The parts hold queries, keys and values: all in one, (*T, 3, H, K), or queries in the first,
    (*T, 1, H, K), and the others in the second, (*M, 2, H, K).
    """
    if isinstance(attend, Tiled) and attend.holds(parts[0].shape[-1]):
        return attend.normed(parts, (norm_q.weight, norm_k.weight), EPS)
    q, k, v = (x for part in parts for x in part.unbind(-3))
    return attend(norm_q(q).to(v.dtype), norm_k(k).to(v.dtype), v)


class SwiGLU(nn.Module):
    """Gated feed-forward layer: W2 (silu(W1 x) * W3 x); Shazeer, arXiv:2002.05202, (6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = Linear(width, 2 * hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Tokens) -> Tokens:
        """Transform each token by itself."""
        return self.out(swiglu(self.gate_and_value(x)))


@dataclass(frozen=True)
class Modulation:
    """How each jet modulates a branch."""

    scale: Float[Tensor, "*J D"]
    """1 + what is linear in the context, times the weight of the norm."""
    shift: Float[Tensor, "*J D"]
    gate: Float[Tensor, "*J D"]
    owners: Owners | None
    """Whose the rows are; None of padded tokens, where the others are (J, 1, D)."""


class Branch(nn.Module):
    """A residual branch: x + gate * layer(norm(x) * (1 + scale) + shift).

    Scale, shift and gate are linear in silu(context) and start at zero, as in adaLN-Zero (Peebles
    and Xie, arXiv:2212.09748, section 3.2). ``Blocks.modulations`` computes them once per jet;
    they are spread over its tokens. Without a context the branch is the plain x + layer(norm(x)).
    """

    def __init__(
        self, layer: nn.Module, width: int, context_width: int | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm = RMSNorm(width)
        self.modulation = ZeroLinear(context_width, 3 * width) if context_width else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tokens, modulation: Modulation | None, *inputs: object, rows: Rows | None = None
    ) -> Chosen:
        """Add the branch to ``x``; ``inputs`` go to the layer.

        Without a modulation, it can be asked for some ``rows`` alone; they go to the layer too.
        """
        if rows is not None:
            assert modulation is None
            normed, x = rms_norm_beside(x, self.norm.weight)
            added = self.layer(normed, *inputs, rows)
            return x.index_select(0, rows) + self.dropout(added)
        if modulation is None:
            normed, x = rms_norm_beside(x, self.norm.weight)
            return x + self.dropout(self.layer(normed, *inputs))
        of = modulation
        normed, x = modulated_norm(x, of.scale, of.shift, of.owners)
        return gated(x, self.dropout(self.layer(normed, *inputs)).to(x.dtype), of.gate, of.owners)


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

    @property
    def branches(self) -> list[Branch]:
        """In the order in which they are added."""
        return [self.attention, *([self.cross] if self.cross else []), self.feed_forward]

    def forward(
        self,
        x: Tokens,
        modulated: Sequence[Modulation] | None,
        attend: Attend,
        attend_memory: Attend | None = None,
        memory: Tensor | None = None,
        rows: Rows | None = None,
    ) -> Chosen:
        """Transform packed tokens.

        With a modulation of each branch, or without any. With ``rows``, only these come out, and
        only they ask: ``attend`` has them as its queries.
        """
        plain: list[Modulation | None] = [None] * len(self.branches)
        of_attention, *of_cross, of_feed_forward = modulated or plain
        x = self.attention(x, of_attention, attend, rows=rows)
        if self.cross is not None:
            x = self.cross(x, *of_cross, attend_memory, memory)
        return self.feed_forward(x, of_feed_forward)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with statistics, and sums of gradients, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers; SiLU and LayerNorm after each but the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [Linear(before, after), nn.SiLU(), LayerNorm(after)]
    return nn.Sequential(*layers, Linear(widths[-2], widths[-1]))


def fourier(t: Float[Tensor, " J"], num: int) -> Float[Tensor, "J two_num"]:
    """Cosines and sines of t in (0, 1) at the angular frequencies pi, 2 pi, ..., num pi."""
    angles = t[:, None] * torch.pi * torch.arange(1, num + 1, device=t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
