"""DINO, jet by jet, from its equations; slow and plain.

The generator is drawn from once, as in ``DINO.loss``: ``rand(T)`` in float64; in each jet, the
constituents with the smallest numbers are hidden.
"""

from __future__ import annotations

import torch
from reference.jepa import predict, share
from reference.spread import koleo_loss, length
from reference.ssfm import encode, hide, linear, mlp
from torch import Tensor

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives.dino import DINO, Head


def dino_loss(objective: DINO, batch: JetBatch, rng: torch.Generator) -> dict[str, Tensor]:
    """The three terms."""
    cfg, teacher = objective.cfg, objective.teacher.parts
    scaled = objective.encoder.scale(batch)
    registers = objective.encoder.cfg.registers
    jets, answers, jet_targets, token_targets = [], [], [], []
    for jet, chosen in enumerate(hide(scaled.packing.offsets.tolist(), share(objective), rng)):
        start, stop = scaled.packing.offsets[jet : jet + 2].tolist()
        visible = [row for row in range(start, stop) if row not in chosen]
        features, ids, of_jet = scaled.features, scaled.ids, scaled.jets[jet]
        told = of_jet if cfg.teacher_context else 0 * of_jet
        with torch.no_grad():
            whole = encode(teacher["encoder"], features[start:stop], ids[start:stop], told)
            jet_targets.append(logits(teacher["jet_head"], whole[:registers].mean(0)))
            for row in chosen:
                vector = whole[registers + row - start]
                token_targets.append(logits(teacher["token_head"], vector))
        memory = encode(objective.encoder, features[visible], ids[visible], of_jet)
        jets.append(memory[:registers].mean(0))
        answers += list(linear(objective.out, predict(objective.predictor, memory, len(chosen))))
    return {
        "dino": cross_entropy(cfg, jet_targets, [logits(objective.jet_head, v) for v in jets]),
        "ibot": cross_entropy(
            cfg, token_targets, [logits(objective.token_head, v) for v in answers]
        ),
        "koleo": cfg.koleo * koleo_loss(jets),
    }


def logits(head: Head, vector: Tensor) -> Tensor:
    """Cosines of one vector, in the bottleneck, with each prototype."""
    z = mlp(head.mlp, vector)
    return torch.stack([z @ c / (length(z) * length(c)) for c in head.prototypes])


def cross_entropy(cfg, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """The mean of -sum_k q_k log p_k."""
    targets = sinkhorn_loop(torch.stack(teacher).double() / cfg.teacher_temperature, 3)
    losses = []
    for q, answer in zip(targets.float(), student, strict=True):
        weights = torch.exp(answer / cfg.student_temperature)
        losses.append(-(q * torch.log(weights / weights.sum())).sum())
    return torch.stack(losses).mean()


def sinkhorn_loop(values: Tensor, steps: int) -> Tensor:
    """exp(values), its rows divided by their sums; then so often its columns, and its rows."""
    q = torch.exp(values - values.max())
    rows, columns = q.shape

    def divide_rows() -> None:
        for i in range(rows):
            q[i] = q[i] / sum(q[i].tolist())

    divide_rows()
    for _ in range(steps):
        for k in range(columns):
            q[:, k] = q[:, k] / sum(q[:, k].tolist())
        divide_rows()
    return q
