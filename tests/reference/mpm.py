"""Masked particle modelling, jet by jet, from its equations; slow and plain.

The generator is drawn from in the order of ``MPM.loss``:

1. ``rand(T)`` in float64: in each jet, the constituents with the smallest numbers are hidden;
2. with the head ``flow``, ``randn(hidden constituents)``: the times are the sigmoids of these;
3. and ``randn(hidden constituents, features)``: the noise x1, in the order of the batch.
"""

from __future__ import annotations

import math

import torch
from reference import ssfm
from reference.ssfm import branch, linear, rms_norm, self_attention, swiglu
from torch import Tensor

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives.mpm import MPM
from jetssl_cli.objectives.predictor import Predictor


def mpm_terms(objective: MPM, batch: JetBatch, rng: torch.Generator) -> dict[str, Tensor]:
    """The mean over all hidden constituents, of the error of the head and of that of the class."""
    scaled = objective.encoder.scale(batch)
    offsets = scaled.packing.offsets.tolist()
    hidden = ssfm.hide(offsets, objective.cfg.mask.share, rng)
    vectors = []
    for jet, chosen in enumerate(hidden):
        visible = [row for row in range(offsets[jet], offsets[jet + 1]) if row not in chosen]
        memory = ssfm.encode(
            objective.encoder, scaled.features[visible], scaled.ids[visible], scaled.jets[jet]
        )
        vectors.append(predict(objective.predictor, memory, len(chosen)))
    z = torch.cat(vectors)
    rows = [row for chosen in hidden for row in chosen]
    x, ids = scaled.features[rows], scaled.ids[rows]
    terms = HEADS[objective.cfg.head.name](objective.head, z, x, rng)
    return {**terms, "class": surprise(linear(objective.classify, z), ids)}


def predict(predictor: Predictor, memory: Tensor, number: int) -> Tensor:
    """Vectors of one jet's hidden constituents."""
    x = torch.cat([linear(predictor.project, memory), predictor.mask_tokens[:number]])
    for block in predictor.blocks:
        x = branch(
            block.attention,
            x,
            None,
            lambda y, layer=block.attention.layer: self_attention(layer, y),
        )
        x = branch(
            block.feed_forward,
            x,
            None,
            lambda y, layer=block.feed_forward.layer: swiglu(layer, y),
        )
    return rms_norm(predictor.norm, x[len(memory) :])


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of -log of the probability of the target."""
    right = logits[torch.arange(len(targets)), targets]
    return (torch.log(torch.exp(logits).sum(1)) - right).mean()


def _l1(head, z, x, rng):
    del rng
    return {"features": torch.abs(linear(head.out, z) - x).mean()}


def _tokens(head, z, x, rng):
    del rng
    apart = ((x[:, None] - head.tokenizer.centres) ** 2).sum(2)
    return {"token": surprise(linear(head.out, z), apart.argmin(1))}


def _flow(head, z, x, rng):
    times = 1 / (1 + torch.exp(-torch.randn(len(x), generator=rng)))
    noise = torch.randn(x.shape, generator=rng)
    errors = []
    for own_z, x0, t, x1 in zip(z, x, times, noise, strict=True):
        angles = [t * math.pi * k for k in range(1, head.time_features + 1)]
        fourier = torch.stack([*map(torch.cos, angles), *map(torch.sin, angles)])
        velocity = ssfm.mlp(head.velocity, torch.cat([(1 - t) * x0 + t * x1, own_z, fourier]))
        errors.append((velocity - (x1 - x0)) ** 2)
    return {"flow": torch.cat(errors).mean()}


HEADS = {"l1": _l1, "tokens": _tokens, "flow": _flow}
