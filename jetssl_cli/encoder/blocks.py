"""Blocks one after the other, as encoder, decoders and predictor have them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from jetssl_cli.batch import Owners
from jetssl_cli.encoder.attention import Attend
from jetssl_cli.encoder.functions import linear
from jetssl_cli.encoder.graphs import Graphs
from jetssl_cli.encoder.leaves import leaves
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

    def forward(self, *given: Any, **more: Any) -> Chosen:
        """What comes out of the last block; it is given what ``layers`` is."""
        (last,) = deque(self.layers(*given, **more), maxlen=1)
        return last

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


class Recordable(nn.Module):
    """A network that computes from tensors alone, so that a GPU can be sent all of it at once.

    How the rows of a batch lie is found before; their numbers come in steps (``Packing.rows``).
    """

    graphs: Graphs | None = None
    """What runs it on a GPU, where ``compile_parts`` was called."""

    def compute(self, *args: Any) -> Tensor:
        """What the network makes of tensors, and of what a graph may hang on."""
        raise NotImplementedError(type(self).__name__)

    def computed(self, *args: Any) -> Tensor:
        """The same, from a graph where there can be one."""
        if self.graphs is None or not args[0].is_cuda:
            return self.compute(*args)
        planned = any(map(callable, leaves(args)))  # for this batch alone, by a plan of attention
        return self.compute(*args) if planned else self.graphs(*args)

    def has_no_state(self) -> bool:
        """Whether it draws no numbers, and has no pass forward in that back."""
        for part in self.modules():
            drops = isinstance(part, nn.Dropout) and part.p > 0 and self.training
            if drops or (isinstance(part, Blocks) and part.recompute):
                return False
        return True


def compile_parts(module: nn.Module) -> None:
    """Record networks on a GPU; on a CPU, let torch.compile fuse blocks, and MLPs.

    That for any number of tokens; parts of one shape are compiled once, for each way in which they
    are used. A GPU has fused kernels without it.
    """
    on_gpu = torch.cuda.is_available()
    torch._dynamo.config.recompile_limit = 64  # with and without gradients, and so on
    for part in module.modules():
        if on_gpu and isinstance(part, Recordable):
            part.graphs = Graphs(part, part.compute, part.has_no_state)
        elif not on_gpu and isinstance(part, Block | nn.Sequential):
            part.compile(dynamic=True)
