"""Blocks one after the other, as encoder, decoders and predictor have them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint as recomputed

from jetssl_cli.batch import Owners
from jetssl_cli.encoder.attention import Attend, Tiled
from jetssl_cli.encoder.graphs import Graphs
from jetssl_cli.encoder.transformer import Block, Chosen, Modulation, Rows, Tokens


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
