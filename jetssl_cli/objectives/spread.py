"""A term that keeps jets apart: KoLeo, on the registers that speak for a jet.

    mean over jets of -log min_j |v_i - v_j|

with v the mean of a jet's registers, divided by its length: the estimate of Kozachenko and
Leonenko of minus the entropy of the vectors (Sablayrolles et al., arXiv:1806.03198, (2)).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from jetssl_cli.encoder.encoder import Encoded


def register_means(encoded: Encoded) -> Float[Tensor, "J D"]:
    """The mean of the registers of each jet, in float32."""
    is_register = torch.ones(len(encoded.tokens), dtype=torch.bool, device=encoded.tokens.device)
    is_register[encoded.constituent_rows] = False
    jets = encoded.packing.num_jets
    count = len(encoded.tokens) - len(encoded.constituent_rows)
    rows = torch.nonzero_static(is_register, size=count)[:, 0]
    registers = encoded.tokens.index_select(0, rows).float()
    return registers.view(jets, count // max(jets, 1), registers.shape[1]).mean(1)


def koleo(vectors: Float[Tensor, "J D"]) -> Float[Tensor, " J"]:
    """-log of the distance to the nearest other vector, all divided by their lengths."""
    if len(vectors) < 2:
        return vectors.sum(-1) * 0
    directions = normalize(vectors, dim=-1)
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        cosines = directions @ directions.T  # in half precision, neighbours would be mistaken
        nearest = cosines.fill_diagonal_(-2).argmax(-1)
    distances = (directions - directions.index_select(0, nearest)).norm(dim=-1)
    return -(distances + 1e-8).log()
