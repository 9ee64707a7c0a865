"""From the encoded visible constituents to one vector for each hidden one.

    visible, encoded --linear--+
                               +--> [visible, mask tokens] --> blocks --> norm --> the hidden ones
    k-th of the mask tokens ---+

Jets have no positions: with one mask token for all, every hidden constituent of a jet would get the
same answer. So the k-th hidden constituent, in pT order, gets the k-th of a learned table.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.attention import Attend, plan
from jetssl_cli.encoder.blocks import Asked, Blocks, Recordable
from jetssl_cli.encoder.encoder import Encoded
from jetssl_cli.encoder.transformer import Linear, RMSNorm

MASK_TOKENS = 128
"""Rows of the table; further hidden constituents of a jet share the last one."""


class Predictor(Recordable):
    """A transformer on visible and mask tokens, without context."""

    def __init__(self, *, encoder_width: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.project = Linear(encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.randn(MASK_TOKENS, width) * 0.02)
        self.blocks = Blocks(depth, width, heads, None)
        self.norm = RMSNorm(width)

    def forward(self, visible: Encoded, hidden: Packing) -> Float[Tensor, "rows E"]:
        """Vectors of the hidden constituents, in their order, and what lies behind them.

        The rows are those of ``hidden.rows``: a head runs on all, and cuts its output. Of the last
        block they alone are computed: of the others, nobody reads what comes out.
        """
        packing, rows, hidden_rows = visible.packing.join(hidden)
        behind = packing.rows  # where what belongs to no token goes
        places = visible.packing.pad(rows, behind), hidden.pad(hidden_rows, behind)
        tokens = hidden.pad(hidden.rank.clamp_max(MASK_TOKENS - 1))
        attend = plan(packing, backend=visible.backend)
        asked = Asked(hidden.pad(hidden_rows), plan(hidden, packing, backend=visible.backend))
        return self.computed(visible.rows, places, tokens, behind, attend, asked)

    def compute(
        self,
        visible: Float[Tensor, "visible D"],
        places: tuple[Tensor, Tensor],
        tokens: Int[Tensor, " hidden"],
        rows: int,
        attend: Attend,
        asked: Asked,
    ) -> Float[Tensor, "hidden E"]:
        """The vectors, given where visible and hidden constituents go and the mask tokens."""
        seen = self.project(visible)
        masked = self.mask_tokens.index_select(0, tokens).to(seen.dtype)  # gradients in float32
        x = seen.new_zeros(rows + 1, seen.shape[1])
        x.index_copy_(0, places[0], seen).index_copy_(0, places[1], masked)
        return self.norm(self.blocks(x[:-1], None, attend, asked=asked))
