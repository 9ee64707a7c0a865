"""DINO: agree with a teacher, that sees the whole jet, on which prototypes it resembles.

    visible --> encoder --+--> registers, mean --> jet head -------------> p  ~  q of the jet
                          +--> predictor --> linear --> token head ------> p  ~  q of each hidden
    whole jet, but for its features --> teacher: the same --> Sinkhorn-Knopp --> q

    head: MLP --> z / |z| --> cosines with K prototypes        teacher: moving average of all this

With logits l of a head, p = softmax(l / 0.1), and the loss is

    mean over jets of -sum_k q_k log p_k               (Caron et al., arXiv:2104.14294, (1) and (3))
    + the same over hidden constituents                (Zhou et al., arXiv:2111.07832, (2))
    + 0.1 mean over jets of -log min_j |v_i - v_j|     (Sablayrolles et al., arXiv:1806.03198, (2))

where v are the registers' means, divided by their lengths, and j runs over the other jets of the
process. The teacher's q are exp(l / 0.05), scaled by rows and columns until each row sums to 1 and
all columns to the same (Sinkhorn-Knopp; Caron et al., arXiv:2006.09882, (5); for DINO, Oquab et
al., arXiv:2304.07193, section 4): no prototype can take all jets. The logits themselves are never
normalised, which would leave the softmax flat.

What gives the student something to look for: the teacher sees all constituents, but is not told
the jet features, which are 0 for it, the middle of their distributions. A target that holds them is
met by who passes them on, and who has done so has learned nothing of the constituents.
``docs/methods.md`` has both.

What breaks the tie between hidden constituents, which have no positions: the k-th of a jet, in pT
order, is asked for with the k-th mask token of the predictor's table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import mlp
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.ema import Teacher
from jetssl_cli.objectives.masking import MaskConfig, RandomMaskConfig
from jetssl_cli.objectives.objective import Objective, width_beside
from jetssl_cli.objectives.predictor import Predictor
from jetssl_cli.objectives.spread import koleo, register_means
from jetssl_cli.objectives.totals import Totals

SINKHORN_STEPS = 3
"""As in SwAV and DINOv2."""


class DINOConfig(Strict):
    """Settings of self-distillation without labels."""

    name: Literal["dino"] = "dino"
    """Tells the methods apart."""
    mask: MaskConfig = RandomMaskConfig()
    """What the student does not see."""
    predictor_width: PositiveInt | None = None
    """Width of the predictor; half that of the encoder if not given."""
    predictor_depth: PositiveInt = 2
    """Blocks of the predictor."""
    prototypes: PositiveInt = 256
    """K, of jets and as many of constituents."""
    bottleneck: PositiveInt = 64
    """Width in which vectors and prototypes are compared."""
    student_temperature: PositiveFloat = 0.1
    """Of the student's softmax."""
    teacher_temperature: PositiveFloat = 0.05
    """Of the teacher's; the lower, the sharper its targets."""
    koleo: NonNegativeFloat = 0.1
    """Weight of the term that spreads jets."""
    teacher_context: bool = False
    """The teacher is told the jet features, as the student is."""
    teacher_power: PositiveFloat = 10.0
    """The teacher remembers about one ``teacher_power``-th of the steps so far."""

    @property
    def clusters(self) -> None:
        """It needs no tokenizer."""

    def build(self, encoder: Encoder, tokenizer: nn.Module | None = None) -> DINO:
        """Put heads and a predictor on top of the encoder, and a teacher beside them.

        Raises:
            ConfigError: the encoder has no registers, or the width of the predictor is not a
                multiple of the encoder's heads.
        """
        del tokenizer
        if not encoder.cfg.registers:
            raise ConfigError(
                "encoder.registers = 0: must be at least 1 for dino, which reads them"
            )
        return DINO(self, encoder)


class DINO(Objective):
    """See the top of the module."""

    def __init__(self, cfg: DINOConfig, encoder: Encoder) -> None:
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
        self.jet_head = Head(encoder.width, cfg.bottleneck, cfg.prototypes)
        self.token_head = Head(encoder.width, cfg.bottleneck, cfg.prototypes)
        parts = {"encoder": encoder, "jet_head": self.jet_head, "token_head": self.token_head}
        self.teacher = Teacher(parts)
        self.totals = Totals(**_watched("jet", cfg.prototypes), **_watched("token", cfg.prototypes))

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropies of jets and of hidden constituents, and the term that spreads jets."""
        scaled = self.encoder.scale(batch)
        split = self.cfg.mask.split(scaled, rng)
        unseen = split.unseen.packing
        shown = scaled if self.cfg.teacher_context else _untold(scaled)
        with torch.no_grad():
            whole = self.teacher.encoder.encode(shown)
            hidden = unseen.pad(whole.constituents.index_select(0, split.hidden_rows))
            jet_logits = self.teacher.parts["jet_head"](register_means(whole))
            token_logits = self.teacher.parts["token_head"](hidden)[: unseen.total]
        seen = self.encoder.encode(split.seen)
        jets = register_means(seen)
        answers = self.token_head(self.out(self.predictor(seen, unseen)))[: unseen.total]
        spread = self.cfg.koleo * parallel.mean(koleo(jets))
        return {
            "dino": self._distil("jet", jet_logits, self.jet_head(jets)),
            "ibot": self._distil("token", token_logits, answers),
            "koleo": spread,
        }

    def after_step(self, progress: float) -> None:
        """The teacher follows, heads included."""
        del progress
        self.teacher.follow(self, self.cfg.teacher_power)

    def exported(self) -> Encoder:
        """The teacher."""
        return self.teacher.encoder

    def diagnostics(self) -> dict[str, float]:
        """For jets and hidden constituents it was evaluated on, how the prototypes are used.

        Occupancy is exp(entropy of the shares of prototypes that are nearest to the teacher's
        vectors) / K: 1 where all are used alike, 1/K when collapsed. The entropies of the targets
        and of the student lie between 0 and log K; at log K nothing is told apart.
        """
        totals = self.totals.take()
        found = {}
        for name in ("jet", "token"):
            nearest = totals[f"{name}_nearest"]
            count = nearest.sum().clamp_min(1)
            occupancy = torch.special.entr(nearest / count).sum().exp() / len(nearest)
            found[f"{name}_occupancy"] = float(occupancy)
            for who in ("teacher", "student"):
                found[f"{name}_{who}_entropy"] = float(totals[f"{name}_{who}"] / count)
        return found

    def _distil(
        self, name: str, teacher: Float[Tensor, "N K"], student: Float[Tensor, "N K"]
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy -sum_k q_k log p_k."""
        wanted = sinkhorn(teacher / self.cfg.teacher_temperature)
        log_p = (student / self.cfg.student_temperature).log_softmax(-1)
        if not self.training:
            self.totals.add(
                **{
                    f"{name}_nearest": _counts(teacher.argmax(-1), teacher.shape[1]),
                    f"{name}_teacher": torch.special.entr(wanted).sum(),
                    f"{name}_student": -(log_p.detach().exp() * log_p.detach()).sum(),
                }
            )
        return parallel.mean(-(wanted * log_p).sum(-1))


class Head(nn.Module):
    """Vectors -> cosines with K prototypes, between -1 and 1."""

    def __init__(self, width: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = mlp(width, 2 * width, 2 * width, bottleneck)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Logits in float32, before any temperature: cosines lie close together."""
        vectors = self.mlp(vectors)
        with torch.autocast(vectors.device.type, enabled=False):
            return linear(normalize(vectors.float(), dim=-1), normalize(self.prototypes, dim=-1))


@torch.no_grad()
def sinkhorn(logits: Float[Tensor, "N K"], steps: int = SINKHORN_STEPS) -> Float[Tensor, "N K"]:
    """Rows that sum to 1, with all columns of the global batch near to the same sum.

    Columns are divided by their sums over the rows of all processes, then rows by theirs, in
    turns; the first rows are a softmax, so that nothing overflows.
    """
    q = logits.softmax(-1)
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(steps):
        q = q / parallel.summed(q.sum(0)).clamp_min(tiny)
        q = q / q.sum(-1, keepdim=True).clamp_min(tiny)
    return q


def _untold(scaled: JetBatch) -> JetBatch:
    """The same constituents, of jets whose features are missing."""
    return replace(scaled, jets=torch.zeros_like(scaled.jets))


def _counts(values: Tensor, num: int) -> Tensor:
    zeros = torch.zeros(num, device=values.device)
    return zeros.index_add(0, values, torch.ones_like(values, dtype=zeros.dtype))


def _watched(name: str, prototypes: int) -> dict[str, int]:
    return {f"{name}_nearest": prototypes, f"{name}_teacher": 1, f"{name}_student": 1}
