"""JEPA: predict what a teacher makes of the hidden constituents, not the constituents.

    visible --> encoder --> predictor --> s ---------------+
                                                           +-- smooth L1
    whole jet --> teacher --> layers' norms, mean, norm: y -+
                     ^
                     +-- moving average of the encoder

The loss is

    mean over the numbers of all hidden constituents of l(s - y)
    + 0.005 mean over jets of -log min_j |v_i - v_j|   (Sablayrolles et al., arXiv:1806.03198, (2))

with l(d) = d^2 / 2 where |d| < 1, |d| - 1/2 elsewhere, as in data2vec (Baevski et al.,
arXiv:2202.03555, section 3.4; Assran et al., arXiv:2301.08243, section 3, have an L2 distance);
v are the means of the encoder's registers, divided by their lengths, and j runs over the other jets
of the process. As in data2vec, too (section 3.3), y is the mean over layers of their normalised
outputs, here normalised once more and over all layers, the embedding of the constituent included.
The layer norms have no weights.

What keeps it from collapse: the embeddings are made constituent by constituent, from its features
and class alone. A target that holds them cannot be guessed from the jet features, with which the
blocks of both encoders are modulated, and differs between constituents whatever the blocks do. The
second term keeps jets apart. ``docs/methods.md`` has what was tried.

What breaks the tie between hidden constituents, which have no positions: the k-th of a jet, in pT
order, is asked for with the k-th mask token of the predictor's table.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.ema import Teacher
from jetssl_cli.objectives.masking import MaskConfig, RandomMaskConfig
from jetssl_cli.objectives.objective import Objective, width_beside
from jetssl_cli.objectives.predictor import Predictor
from jetssl_cli.objectives.spread import koleo, register_means
from jetssl_cli.objectives.totals import Totals


class JEPAConfig(Strict):
    """Settings of the joint-embedding predictive architecture."""

    name: Literal["jepa"] = "jepa"
    """Tells the methods apart."""
    mask: MaskConfig = RandomMaskConfig()
    """What the encoder does not see."""
    predictor_width: PositiveInt | None = None
    """Width of the predictor; half that of the encoder if not given."""
    predictor_depth: PositiveInt = 2
    """Blocks of the predictor."""
    koleo: NonNegativeFloat = 0.005
    """Weight of the term that spreads jets."""
    teacher_power: PositiveFloat = 10.0
    """The teacher remembers about one ``teacher_power``-th of the steps so far."""

    @property
    def clusters(self) -> None:
        """It needs no tokenizer."""

    def build(self, encoder: Encoder, tokenizer: nn.Module | None = None) -> JEPA:
        """Put a predictor on top of the encoder, and a teacher beside it.

        Raises:
            ConfigError: the encoder has no registers, or the width of the predictor is not a
                multiple of the encoder's heads.
        """
        del tokenizer
        if not encoder.cfg.registers:
            raise ConfigError(
                "encoder.registers = 0: must be at least 1 for jepa, which reads them"
            )
        return JEPA(self, encoder)


class JEPA(Objective):
    """See the top of the module."""

    def __init__(self, cfg: JEPAConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.subjet_radius = cfg.mask.subjet_radius
        self.encoder = encoder
        width = width_beside(encoder, cfg.predictor_width, "predictor_width")
        self.predictor = Predictor(
            encoder_width=encoder.width,
            width=width,
            depth=cfg.predictor_depth,
            heads=encoder.cfg.heads,
        )
        self.out = nn.Linear(width, encoder.width)
        self.teacher = Teacher({"encoder": encoder})
        self.totals = Totals(count=1, sums=encoder.width, squares=encoder.width)

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Smooth L1 over the numbers of all hidden constituents, and the term that spreads jets."""
        scaled = self.encoder.scale(batch)
        split = self.cfg.mask.split(scaled, rng)
        wanted = self.targets(scaled, split.hidden_rows)
        if not self.training:
            self._watch(wanted)
        seen = self.encoder.encode(split.seen)
        answers = self.out(self.predictor(seen, split.unseen.packing))[: len(wanted)].float()
        errors = smooth_l1_loss(answers, wanted, reduction="none")
        spread = parallel.mean(koleo(register_means(seen)))
        return {"smooth_l1": parallel.mean(errors), "koleo": self.cfg.koleo * spread}

    @torch.no_grad()
    def targets(
        self, scaled: JetBatch, chosen: Int[Tensor, " hidden"]
    ) -> Float[Tensor, "hidden D"]:
        """What the teacher makes of the chosen constituents: mean 0 and variance 1 over D."""
        _, rows, layers = self.teacher.encoder.layers(scaled)
        rows = rows.index_select(0, chosen)
        total = torch.zeros(len(rows), self.encoder.width, device=rows.device)
        for layer in layers:
            total += _normalised(layer.index_select(0, rows).float())
        return _normalised(total / (self.encoder.cfg.depth + 1))

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        del progress
        self.teacher.follow(self, self.cfg.teacher_power)

    def exported(self) -> Encoder:
        """The teacher."""
        return self.teacher.encoder

    def diagnostics(self) -> dict[str, float]:
        """Standard deviation of the targets over hidden constituents, from 0 (collapsed) to 1.

        Of the jets it was evaluated on since this was last asked for.
        """
        found = self.totals.take()
        count = found["count"].clamp_min(1)
        variance = found["squares"] / count - (found["sums"] / count).square()
        return {"target_std": float(variance.clamp_min(0).mean().sqrt())}

    def _watch(self, wanted: Float[Tensor, "hidden D"]) -> None:
        count = torch.full((1,), float(len(wanted)), device=wanted.device)
        self.totals.add(count=count, sums=wanted.sum(0), squares=wanted.square().sum(0))


def _normalised(x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
    return layer_norm(x, x.shape[1:])
