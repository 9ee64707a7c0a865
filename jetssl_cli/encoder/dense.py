"""The same networks on padded jets, (J, N): what other formats know, and what a CPU predicts with.

Encoder and pool are run through their own modules; only what goes by the packing is written anew:
registers, the spread of the context, attention. Tokens where the mask is False are seen by no
other. For predictions: there are no derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.attention import Attend
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.pool import AttentionPool

HIDDEN = -3e4
"""Added to the logits of tokens that are not seen; finite in half precision."""


def boxes(packing: Packing, length: int) -> tuple[Bool[Tensor, "J N"], Callable[[Tensor], Tensor]]:
    """The mask of jets padded to a length, and a function that pads rows of tokens with zeros."""
    count = packing.num_jets
    places = packing.owner * length + packing.rank

    def lay(x: Tensor) -> Tensor:
        rows = x.new_zeros(count * length, *x.shape[1:]).index_copy(0, places, x)
        return rows.view(count, length, *x.shape[1:])

    return lay(torch.ones_like(places, dtype=torch.bool)), lay


def encode(
    encoder: Encoder,
    features: Float[Tensor, "J N F"],
    ids: Int[Tensor, "J N"],
    mask: Bool[Tensor, "J N"],
    jets: Float[Tensor, "J G"],
) -> tuple[Float[Tensor, "J M D"], Bool[Tensor, "J M"]]:
    """Vectors of the registers and the constituents of each jet, and which of them are real.

    Args:
        encoder: in evaluation mode.
        features: scaled; finite where the mask is False as well.
        ids: particle classes; valid where the mask is False as well.
        mask: True for constituents.
        jets: scaled jet features.
    """
    tokens = encoder.embed(features)
    if encoder.embed_id is not None:
        tokens = tokens + encoder.embed_id(ids).to(tokens.dtype)
    registers = encoder.registers.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    x = torch.cat([registers, tokens], 1)
    real = torch.cat([mask.new_ones(registers.shape[:2]), mask], 1)
    attend = plan(real, causal=encoder.cfg.causal)
    x = encoder.blocks(x, encoder.modulated(jets, None, x.dtype), attend)
    return encoder.out(encoder.norm(x)), real


def pool(
    head: AttentionPool, tokens: Float[Tensor, "J M D"], mask: Bool[Tensor, "J M"]
) -> Float[Tensor, "J outputs"]:
    """Outputs of each jet."""
    attend, some = plan(mask), mask.any(1)[:, None, None, None]

    def read_or_zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v).masked_fill(~some, 0)

    x = head.query.expand(tokens.shape[0], 1, -1)
    return head.run(x, read_or_zero, tokens)[:, 0]


def mean(tokens: Float[Tensor, "J M D"], mask: Bool[Tensor, "J M"]) -> Float[Tensor, "J D"]:
    """The mean vector of each jet's real tokens, in float32; zero where it has none."""
    sums = tokens.float().masked_fill(~mask[..., None], 0).sum(1)
    return sums / mask.sum(1, keepdim=True).clamp_min(1)


def plan(keys: Bool[Tensor, "J M"], *, causal: bool = False) -> Attend:
    """Attention to the real keys of each jet; (J, N, H, K) each.

    With ``causal`` a token attends to those before it and itself.
    """
    seen = keys[:, None, :]
    if causal:
        seen = seen & keys.new_ones(keys.shape[1], keys.shape[1]).tril()
    hidden = torch.zeros(seen.shape, device=keys.device).masked_fill(~seen, HIDDEN)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(K)) v."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            bias, scale = hidden.to(q.dtype)[:, None], q.shape[-1] ** -0.5
            logits = torch.add(bias, q @ k.transpose(2, 3), alpha=scale)
            return (logits.softmax(-1) @ v).transpose(1, 2)

    return attend
