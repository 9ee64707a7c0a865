"""From the encoded visible constituents to one vector for each hidden one.

    visible, encoded --linear--+
                               +--> [visible, mask tokens] --> blocks --> norm --> the hidden ones
    k-th of the mask tokens ---+

Jets have no positions: with one mask token for all, every hidden constituent of a jet would get the
same answer. So the k-th hidden constituent, in pT order, gets the k-th of a learned table.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.attention import plan
from jetssl_cli.encoder.blocks import Asked, Blocks
from jetssl_cli.encoder.encoder import Encoded
from jetssl_cli.encoder.transformer import RMSNorm

MASK_TOKENS = 128
"""Rows of the table; further hidden constituents of a jet share the last one."""


class Predictor(nn.Module):
    """A transformer on visible and mask tokens, without context."""

    def __init__(self, *, encoder_width: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.randn(MASK_TOKENS, width) * 0.02)
        self.blocks = Blocks(depth, width, heads, None)
        self.norm = RMSNorm(width)

    def forward(self, visible: Encoded, hidden: Packing) -> Float[Tensor, "rows E"]:
        """Vectors of the hidden constituents, in their order, and what lies behind them.

        The rows are those of ``hidden.rows``: a head runs on all, and cuts its output. Of the last
        block they alone are computed: of the others, nobody reads what comes out.
        """
        packing, rows, hidden_rows = visible.packing.join(hidden)
        seen = self.project(visible.rows)[: visible.packing.total]
        places = hidden.rank.clamp_max(MASK_TOKENS - 1)
        masked = self.mask_tokens.index_select(0, places).to(seen.dtype)  # gradients in float32
        x = seen.new_zeros(packing.rows, seen.shape[1])
        x.index_copy_(0, rows, seen).index_copy_(0, hidden_rows, masked)
        chosen = torch.nn.functional.pad(hidden_rows, (0, hidden.rows - hidden.total))
        attend = plan(packing, backend=visible.backend)
        asked = Asked(chosen, plan(hidden, packing, backend=visible.backend))
        return self.norm(self.blocks(x, None, attend, asked=asked))
