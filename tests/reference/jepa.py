"""JEPA, jet by jet, from its equations; slow and plain.

The generator is drawn from once, as in ``JEPA.loss``: ``rand(T)`` in float64; in each jet, the
constituents with the smallest numbers are hidden.
"""

from __future__ import annotations

import torch
from reference.spread import koleo_loss
from reference.ssfm import branch, encode, hide, layers, linear, rms_norm, self_attention, swiglu
from torch import Tensor

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives.jepa import JEPA
from jetssl_cli.objectives.predictor import Predictor


def jepa_loss(objective: JEPA, batch: JetBatch, rng: torch.Generator) -> dict[str, Tensor]:
    """The two terms."""
    scaled = objective.encoder.scale(batch)
    registers = objective.encoder.cfg.registers
    errors, jets = [], []
    for jet, chosen in enumerate(hide(scaled.packing.offsets.tolist(), share(objective), rng)):
        start, stop = scaled.packing.offsets[jet : jet + 2].tolist()
        visible = [row for row in range(start, stop) if row not in chosen]
        features, ids, of_jet = scaled.features, scaled.ids, scaled.jets[jet]
        with torch.no_grad():
            whole = layers(objective.teacher.encoder, features[start:stop], ids[start:stop], of_jet)
        wanted = [target([layer[registers + row - start] for layer in whole]) for row in chosen]
        memory = encode(objective.encoder, features[visible], ids[visible], of_jet)
        jets.append(memory[:registers].mean(0))
        answers = linear(objective.out, predict(objective.predictor, memory, len(chosen)))
        errors += [smooth_l1(s - y) for s, y in zip(answers, wanted, strict=True)]
    return {
        "smooth_l1": torch.cat(errors).mean(),
        "koleo": objective.cfg.koleo * koleo_loss(jets),
    }


def share(objective) -> float:
    """Share of the constituents of a jet that are hidden."""
    found: float = objective.cfg.mask.share
    return found


def target(of_layers: list[Tensor]) -> Tensor:
    """The mean of the standardised layers of one constituent, standardised."""
    return standardised(sum(map(standardised, of_layers)) / len(of_layers))


def predict(predictor: Predictor, memory: Tensor, number: int) -> Tensor:
    """The vectors of so many hidden constituents of one jet."""
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


def standardised(x: Tensor) -> Tensor:
    """A vector with mean 0 and variance 1."""
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5)


def smooth_l1(d: Tensor) -> Tensor:
    """A parabola near 0, straight lines further out."""
    return torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5)
