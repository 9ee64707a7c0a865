"""Next-particle prediction, jet by jet, from its equation; slow and plain. It draws nothing."""

from __future__ import annotations

from itertools import pairwise

import torch
from reference import ssfm
from reference.mpm import surprise
from reference.ssfm import branch, linear, rms_norm, self_attention, swiglu
from torch import Tensor

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives.gpt import GPT, CausalDecoder


def gpt_terms(objective: GPT, batch: JetBatch) -> dict[str, Tensor]:
    """Means of -log p(next token) over constituents and ends, -log p(next class) over the former.

    A jet of as many constituents as the reader takes at most has no end.
    """
    scaled, centres = objective.encoder.scale(batch), objective.tokenizer.centres
    bounds = scaled.packing.offsets.tolist()
    vectors: list[Tensor] = []
    words: list[int] = []
    inner: list[bool] = []
    for jet, (start, stop) in enumerate(pairwise(bounds)):
        x, ids = scaled.features[start:stop], scaled.ids[start:stop]
        tokens = ssfm.encode(objective.encoder, x, ids, scaled.jets[jet], causal=True)
        tokens = decode(objective.decoder, tokens) if objective.decoder is not None else tokens
        vectors.append(tokens[objective.encoder.cfg.registers - 1 :])
        words += [int(((centres - one) ** 2).sum(1).argmin()) for one in x] + [len(centres)]
        inner += [True] * len(x) + [False]
        if len(x) == batch.most:
            vectors[-1] = vectors[-1][:-1]
            words.pop()
            inner.pop()
    s = torch.cat(vectors)
    return {
        "token": surprise(linear(objective.token, s), torch.tensor(words)),
        "class": surprise(linear(objective.classify, s[torch.tensor(inner)]), scaled.ids),
    }


def decode(decoder: CausalDecoder, memory: Tensor) -> Tensor:
    """What the heads read, from the registers and constituents of one jet."""
    x = linear(decoder.project, memory)
    for block in decoder.blocks:
        x = branch(
            block.attention,
            x,
            None,
            lambda y, layer=block.attention.layer: self_attention(layer, y, causal=True),
        )
        x = branch(
            block.feed_forward,
            x,
            None,
            lambda y, layer=block.feed_forward.layer: swiglu(layer, y),
        )
    return rms_norm(decoder.norm, x)
