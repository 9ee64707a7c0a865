"""Set-to-set flow matching, jet by jet, from its equations; slow and plain.

Written from the descriptions (``docs`` of the modules), with the weights of the modules and none
of their code. The generator is drawn from in the order of ``SSFM.loss``:

1. ``rand(T)`` in float64: in each jet, the constituents with the smallest numbers are hidden;
2. ``randn(J)``: the times are the sigmoids of these;
3. ``randn(hidden constituents, features + classes)``: the noise x1, in the order of the batch.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import RMSNorm
from jetssl_cli.objectives.ssfm import SSFM, FlowDecoder


def flow_loss(objective: SSFM, batch: JetBatch, rng: torch.Generator) -> Tensor:
    """The mean over all numbers of all hidden constituents of (v - (x1 - x0))^2."""
    scaled = objective.encoder.scale(batch)
    hidden = hide(scaled.packing.offsets.tolist(), objective.cfg.mask.share, rng)
    times = 1 / (1 + torch.exp(-torch.randn(scaled.packing.num_jets, generator=rng)))
    outputs = objective.encoder.num_features + objective.encoder.num_ids
    noise = torch.randn(sum(map(len, hidden)), outputs, generator=rng)
    errors = []
    for jet, chosen in enumerate(hidden):
        start, stop = scaled.packing.offsets[jet : jet + 2].tolist()
        visible = [row for row in range(start, stop) if row not in chosen]
        features, ids, of_jet = scaled.features, scaled.ids, scaled.jets[jet]
        memory = encode(objective.encoder, features[visible], ids[visible], of_jet)
        x0 = torch.cat([features[chosen], torch.eye(objective.encoder.num_ids)[ids[chosen]]], 1)
        x1, noise = noise[: len(chosen)], noise[len(chosen) :]
        t = times[jet]
        velocity = decode(objective.decoder, (1 - t) * x0 + t * x1, t, memory)
        errors.append((velocity - (x1 - x0)) ** 2)
    return torch.cat(errors).mean()


def hide(offsets: list[int], share: float, rng: torch.Generator) -> list[list[int]]:
    """The rows that are hidden, for each jet."""
    keys = torch.rand(offsets[-1], generator=rng, dtype=torch.float64).tolist()
    hidden = []
    for start, stop in pairwise(offsets):
        by_key = sorted(range(start, stop), key=keys.__getitem__)
        hidden.append(sorted(by_key[: math.floor(Fraction(str(share)) * (stop - start))]))
    return hidden


def encode(
    encoder: Encoder, features: Tensor, ids: Tensor, of_jet: Tensor, *, causal: bool = False
) -> Tensor:
    """The registers and constituents of one jet, from scaled features."""
    last = layers(encoder, features, ids, of_jet, causal=causal)[-1]
    return linear(encoder.out, rms_norm(encoder.norm, last))


def layers(
    encoder: Encoder, features: Tensor, ids: Tensor, of_jet: Tensor, *, causal: bool = False
) -> list[Tensor]:
    """What goes into the first block for one jet, and what comes out of each."""
    constituents = mlp(encoder.embed, features) + encoder.embed_id.weight[ids]
    found = [torch.cat([encoder.registers, constituents])]
    context = mlp(encoder.embed_jet, of_jet) if encoder.embed_jet is not None else None
    for block in encoder.blocks:
        x = branch(
            block.attention,
            found[-1],
            context,
            lambda y, layer=block.attention.layer: self_attention(layer, y, causal=causal),
        )
        x = branch(
            block.feed_forward,
            x,
            context,
            lambda y, layer=block.feed_forward.layer: swiglu(layer, y),
        )
        found.append(x)
    return found


def decode(decoder: FlowDecoder, xt: Tensor, t: Tensor, memory: Tensor) -> Tensor:
    """The velocity of one jet's hidden set."""
    angles = [t * math.pi * k for k in range(1, decoder.time_features + 1)]
    fourier = torch.stack([*map(torch.cos, angles), *map(torch.sin, angles)])
    context = mlp(decoder.embed_time, fourier)
    x = mlp(decoder.embed, xt)
    for block in decoder.blocks:
        x = branch(
            block.attention,
            x,
            context,
            lambda y, layer=block.attention.layer: self_attention(layer, y),
        )
        x = branch(
            block.cross,
            x,
            context,
            lambda y, layer=block.cross.layer: cross_attention(layer, y, memory),
        )
        x = branch(
            block.feed_forward,
            x,
            context,
            lambda y, layer=block.feed_forward.layer: swiglu(layer, y),
        )
    return linear(decoder.out, rms_norm(decoder.norm, x))


def branch(module, x, context, layer):
    """x + gate * layer(norm(x) * (1 + scale) + shift); plain x + layer(norm(x)) without context."""
    normed = rms_norm(module.norm, x)
    if context is None:
        return x + layer(normed)
    scale, shift, gate = linear(module.modulation, context * torch.sigmoid(context)).split(
        x.shape[1]
    )
    return x + gate * layer(normed * (1 + scale) + shift)


def self_attention(module, x, *, causal=False):
    """Attention of one jet's tokens to each other; if causal, to none that comes later."""
    width = x.shape[1]
    q, k, v = linear(module.qkv, x).split(width, 1)
    return linear(module.out, rms_norm(module.norm, attention(module, q, k, v, causal=causal)))


def cross_attention(module, x, memory):
    """Attention of one jet's tokens to its memory."""
    q = linear(module.q, x)
    k, v = linear(module.kv, memory).split(q.shape[1], 1)
    return linear(module.out, rms_norm(module.norm, attention(module, q, k, v)))


def attention(module, q, k, v, *, causal=False):
    """softmax(q k^T / sqrt(K)) v, one head at a time; q and k are normalised, v is not."""
    size = q.shape[1] // module.heads
    heads = []
    for first in range(0, q.shape[1], size):
        own = slice(first, first + size)
        q_head, k_head = rms_norm(module.norm_q, q[:, own]), rms_norm(module.norm_k, k[:, own])
        weights = torch.exp(q_head @ k_head.T / math.sqrt(size))
        weights = weights.tril() if causal else weights
        heads.append(weights @ v[:, own] / weights.sum(1, keepdim=True).clamp_min(1e-30))
    return torch.cat(heads, 1)


def swiglu(module, x):
    """W2 (silu(W1 x) * W3 x)."""
    gate, value = linear(module.gate_and_value, x).tensor_split(2, 1)
    return linear(module.out, gate * torch.sigmoid(gate) * value)


def mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Linear layers; SiLU and LayerNorm after each but the last."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = linear(layer, x)
        elif isinstance(layer, nn.SiLU):
            x = x * torch.sigmoid(x)
        else:
            assert isinstance(layer, nn.LayerNorm)
            centred = x - x.mean(-1, keepdim=True)
            spread = torch.sqrt((centred**2).mean(-1, keepdim=True) + layer.eps)
            x = centred / spread * layer.weight + layer.bias
    return x


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x + b."""
    return x @ layer.weight.T + layer.bias


def rms_norm(layer: RMSNorm, x: Tensor) -> Tensor:
    """Divide x by its root mean square, and multiply by the weights."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * layer.weight
