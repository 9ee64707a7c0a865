"""Pre-norm transformer blocks on packed tokens, modulated jet by jet as in adaLN-Zero."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, repeat
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint as recomputed

from jetssl_cli.batch import Owners
from jetssl_cli.encoder.attention import Attend, Tiled
from jetssl_cli.encoder.functions import gated, modulated_norm, rms_norm, swiglu
from jetssl_cli.encoder.graphs import Graphs

Tokens = Float[Tensor, "*T D"]
"""Packed, (T, D), or padded, (J, N, D)."""
Rows = Int[Tensor, " chosen"]
"""Numbers of packed tokens."""
Chosen = Float[Tensor, "*C D"]
"""All tokens, or those of the rows that were asked for."""


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
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tokens, attend: Attend, rows: Rows | None = None) -> Chosen:
        """Mix the tokens of each jet; with ``rows``, for these tokens alone."""
        q, k, v = self._of_all(x) if rows is None else self._of_some(x, rows)  # (T, H, K) each
        mixed = attend(self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype), v)
        return self.out(self.norm(mixed.flatten(-2)))

    def _of_all(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)

    def _of_some(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        width, layer = x.shape[-1], self.qkv
        shape = self.heads, width // self.heads
        q = linear(x.index_select(0, rows), layer.weight[:width], layer.bias[:width])
        kv = linear(x, layer.weight[width:], layer.bias[width:])
        return q.view(-1, *shape), *kv.view(-1, 2, *shape).unbind(1)


class CrossAttention(nn.Module):
    """Attention of tokens to the tokens of a memory, with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tokens, attend: Attend, memory: Float[Tensor, "*M E"]) -> Tokens:
        """Read from the memory of each jet."""
        q = self.q(x).unflatten(-1, (self.heads, -1))  # (T, H, K)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).unbind(-3)  # (M, H, K) each
        mixed = attend(self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype), v)
        return self.out(self.norm(mixed.flatten(-2)))


class SwiGLU(nn.Module):
    """Gated feed-forward layer: W2 (silu(W1 x) * W3 x); Shazeer, arXiv:2002.05202, (6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

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


@dataclass(frozen=True)
class Modulations:
    """How each jet modulates the branches of some blocks, all in their order."""

    scale: Float[Tensor, "*J branches D"]
    shift: Float[Tensor, "*J branches D"]
    gate: Float[Tensor, "*J branches D"]
    owners: Owners | None

    def of_branches(self) -> Iterator[Modulation]:
        """One after the other."""
        parts = self.scale.unbind(-2), self.shift.unbind(-2), self.gate.unbind(-2)
        return (Modulation(*of_branch, self.owners) for of_branch in zip(*parts, strict=True))


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
            added = self.layer(self.norm(x), *inputs, rows)
            return x.index_select(0, rows) + self.dropout(added)
        if modulation is None:
            return x + self.dropout(self.layer(self.norm(x), *inputs))
        of = modulation
        normed = modulated_norm(x, of.scale, of.shift, of.owners)
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


@dataclass(frozen=True)
class Asked:
    """Of the last block, some tokens alone are asked for."""

    rows: Rows
    attend: Attend
    """With these as the queries."""


class Blocks(nn.ModuleList):
    """Blocks of one width, one after the other."""

    graphs: Graphs | None = None
    """What runs them on a GPU, where ``compile_parts`` was called."""

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        context_width: int | None,
        memory_width: int | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        """Build the blocks; with ``recompute`` they keep only what goes into each."""
        super().__init__(Block(width, heads, context_width, memory_width) for _ in range(depth))
        self.recompute = recompute

    def forward(
        self,
        x: Tokens,
        modulations: Modulations | None,
        attend: Attend,
        attend_memory: Attend | None = None,
        memory: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Chosen:
        """What comes out of the last block."""
        args = x, modulations, attend, attend_memory, memory, asked
        attends = [attend, attend_memory, None if asked is None else asked.attend]
        if self.graphs is not None and x.is_cuda and self._can_be_recorded(attends):
            return self.graphs(*args)
        return self._last(*args)

    def layers(
        self,
        x: Tokens,
        modulations: Modulations | None,
        attend: Attend,
        attend_memory: Attend | None = None,
        memory: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Iterator[Chosen]:
        """What goes into the first block, and what comes out of each."""
        of_branches = repeat(None) if modulations is None else modulations.of_branches()
        yield x
        for number, block in enumerate(self, 1):
            assert isinstance(block, Block)
            of_block = list(islice(of_branches, len(block.branches)))
            modulated = None if modulations is None else of_block
            now, rows = attend, None
            if asked is not None and number == len(self):
                now, rows = asked.attend, asked.rows
            inputs = modulated, now, attend_memory, memory, rows
            if self.recompute and torch.is_grad_enabled():
                x = recomputed(block, x, *inputs, use_reentrant=False)
            else:
                x = block(x, *inputs)
            yield x

    def modulations(
        self, context: Float[Tensor, "*J X"], owners: Owners | None, dtype: torch.dtype
    ) -> Modulations:
        """The modulations of all blocks in one product: a GPU waits for each of many.

        Args:
            context: silu(c), with c the context of each jet.
            owners: as in ``Modulation``.
            dtype: of the tokens.
        """
        branches = [branch for block in self for branch in cast(Block, block).branches]
        layers = [branch.modulation for branch in branches if branch.modulation is not None]
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        norms = torch.stack([branch.norm.weight for branch in branches])
        found = linear(context, weight, bias).to(dtype)
        found = found.view(*found.shape[:-1], len(layers), 3, norms.shape[-1])
        scale, shift, gate = found.unbind(-2)
        return Modulations(((1 + scale) * norms).to(dtype), shift, gate, owners)

    def _last(self, *args: Any) -> Tensor:
        (last,) = deque(self.layers(*args), maxlen=1)
        return last

    def _can_be_recorded(self, attends: Sequence[Attend | None]) -> bool:
        """Without hidden states: drawn numbers, a pass forward in that back, plans in a closure."""
        if self.recompute or not all(
            attend is None or isinstance(attend, Tiled) for attend in attends
        ):
            return False
        drops = (part.p > 0 for part in self.modules() if isinstance(part, nn.Dropout))
        return not (self.training and any(drops))


def compile_parts(module: nn.Module) -> None:
    """Let torch.compile fuse blocks, and MLPs, for any number of tokens; on a GPU, record blocks.

    Parts of one shape are compiled once, for each way in which they are used.
    """
    torch._dynamo.config.recompile_limit = 64  # with and without gradients, and so on
    for part in module.modules():
        if isinstance(part, Block | nn.Sequential):
            part.compile(dynamic=True)
        if isinstance(part, Blocks):
            part.graphs = Graphs(part, part._last)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, as autocast has it on CUDA.

    In bf16, as autocast leaves it on a CPU, PyTorch adds up the gradients of weight and bias in
    bf16 too, and loses most of them where there are thousands of rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers; SiLU and LayerNorm after each but the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.SiLU(), LayerNorm(after)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def fourier(t: Float[Tensor, " J"], num: int) -> Float[Tensor, "J two_num"]:
    """Cosines and sines of t in (0, 1) at the angular frequencies pi, 2 pi, ..., num pi."""
    angles = t[:, None] * torch.pi * torch.arange(1, num + 1, device=t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
