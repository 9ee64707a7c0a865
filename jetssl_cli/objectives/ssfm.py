"""SSFM: set-to-set flow matching. Generate the hidden half of a jet from the visible half.

    visible --> encoder --------------------+
                                            | cross-attention
    hidden x0 --+                           v
                +-- xt = (1-t) x0 + t x1 --> decoder --> v  ~  x1 - x0
    noise  x1 --+                           ^
    t = sigmoid(N(0, 1)), one per jet ------+ adaLN on Fourier features of t

A hidden constituent is x0 = (scaled features, one-hot class). The loss is the mean squared error of
the velocity, conditional flow matching on straight paths (Lipman et al., arXiv:2210.02747, (9) and
(23) with sigma = 0; Liu et al., arXiv:2209.03003, (1)); the set-to-set form is that of Leigh et
al., arXiv:2409.12589, section 3, and t is drawn as in Esser et al., arXiv:2403.03206, (19).

What breaks the tie between hidden constituents, which have no positions: each carries its own noise
xt, so that the decoder is asked a different question for each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import one_hot, silu

from jetssl_cli.batch import JetBatch, Owners, Packing
from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import Attend, plan
from jetssl_cli.encoder.blocks import Blocks, Recordable
from jetssl_cli.encoder.encoder import Encoded, Encoder
from jetssl_cli.encoder.transformer import Linear, RMSNorm, fourier, mlp
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.masking import MaskConfig, RandomMaskConfig
from jetssl_cli.objectives.objective import Generated, Objective, Sampling, width_beside


class SSFMConfig(Strict):
    """Settings of set-to-set flow matching."""

    name: Literal["ssfm"] = "ssfm"
    """Tells the methods apart."""
    mask: MaskConfig = RandomMaskConfig()
    """What the encoder does not see."""
    decoder_width: PositiveInt | None = None
    """Width of the decoder; half that of the encoder if not given."""
    decoder_depth: PositiveInt | None = None
    """Blocks of the decoder; as many as the encoder has if not given."""
    time_features: PositiveInt = 16
    """Frequencies at which the decoder is told the time."""

    @property
    def clusters(self) -> None:
        """It needs no tokenizer."""

    def build(self, encoder: Encoder, tokenizer: nn.Module | None = None) -> SSFM:
        """Put a decoder on top of the encoder.

        Raises:
            ConfigError: the width of the decoder is not a multiple of the encoder's heads.
        """
        del tokenizer
        return SSFM(self, encoder)


class SSFM(Objective):
    """See the top of the module."""

    generates = True

    def __init__(self, cfg: SSFMConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.subjet_radius = cfg.mask.subjet_radius
        self.encoder = encoder
        self.decoder = FlowDecoder(
            outputs=encoder.num_features + encoder.num_ids,
            width=width_beside(encoder, cfg.decoder_width, "decoder_width"),
            depth=cfg.decoder_depth or encoder.cfg.depth,
            encoder=encoder,
            time_features=cfg.time_features,
        )

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Mean squared error of the velocity over the numbers of all hidden constituents."""
        scaled = self.encoder.scale(batch)
        split = self.cfg.mask.split(scaled, rng)
        seen, unseen = split.seen, split.unseen
        x0 = self.targets(unseen)
        device = x0.device
        t = torch.randn(scaled.packing.num_jets, generator=rng, device=device).sigmoid()
        x1 = torch.randn(x0.shape, generator=rng, device=device)
        t_token = t[unseen.packing.owner, None]
        xt = (1 - t_token) * x0 + t_token * x1
        velocity = self.decoder(xt, t, unseen.packing, self.encoder.encode(seen))
        return {"flow": parallel.mean((velocity.float() - (x1 - x0)).square())}

    def generate(self, batch: JetBatch, rng: torch.Generator, how: Sampling) -> Generated:
        """As many constituents as the mask hides, given those it shows; the likeliest class."""
        split = self.cfg.mask.split(self.encoder.scale(batch), rng)
        unseen = split.unseen
        made = self.sample(split.seen, unseen.packing, rng, how.steps)
        features, scores = made.tensor_split([self.encoder.num_features], dim=1)
        ids = scores.argmax(1) if self.encoder.num_ids else unseen.ids
        kept = torch.ones_like(batch.ids, dtype=torch.bool)
        kept = kept.index_fill(0, split.hidden_rows, False)
        return Generated(kept, replace(unseen, features=features, ids=ids))

    @torch.no_grad()
    def sample(
        self, seen: JetBatch, hidden: Packing, rng: torch.Generator, steps: int = 50
    ) -> Float[Tensor, "T F_plus_classes"]:
        """Generate hidden constituents: integrate dx/dt = v from noise at t = 1 to t = 0.

        Args:
            seen: the visible constituents, scaled.
            hidden: how many constituents each jet shall get.
            rng: draws the noise.
            steps: of the midpoint method.

        Returns:
            Scaled features and scores of the classes, as in ``targets``.
        """
        memory = self.encoder.encode(seen)
        width = self.encoder.num_features + self.encoder.num_ids
        device = seen.features.device
        x = torch.randn(hidden.total, width, generator=rng, device=device)
        at = torch.ones(hidden.num_jets, device=device)
        for step in range(steps):
            t, half = 1 - step / steps, 0.5 / steps
            middle = x - half * self.decoder(x, t * at, hidden, memory)
            x = x - 2 * half * self.decoder(middle, (t - half) * at, hidden, memory)
        return x

    def targets(self, scaled: JetBatch) -> Float[Tensor, "T F_plus_classes"]:
        """What is generated: the scaled features and the one-hot class."""
        count = self.encoder.num_ids
        classes = one_hot(scaled.ids, max(count, 1))[:, :count]
        return torch.cat([scaled.features, classes.to(scaled.features.dtype)], dim=-1)


class FlowDecoder(Recordable):
    """Velocity of a noisy set at time t, given the encoded visible set."""

    def __init__(
        self, *, outputs: int, width: int, depth: int, encoder: Encoder, time_features: int
    ) -> None:
        super().__init__()
        cfg = encoder.cfg
        self.attention, self.time_features = cfg.attention, time_features
        self.embed = mlp(outputs, cfg.embedding_width, cfg.embedding_width, width)
        self.embed_time = mlp(2 * time_features, cfg.embedding_width, cfg.context_width)
        self.blocks = Blocks(depth, width, cfg.heads, cfg.context_width, encoder.width)
        self.norm = RMSNorm(width)
        self.out = Linear(width, outputs)

    def forward(
        self,
        xt: Float[Tensor, "T outputs"],
        t: Float[Tensor, " J"],
        packing: Packing,
        memory: Encoded,
    ) -> Float[Tensor, "T outputs"]:
        """Predict the velocity at the point ``xt``."""
        attends = (plan(packing, keys, backend=self.attention) for keys in (None, memory.packing))
        given = packing.pad(xt), t, packing.owners, *attends, memory.rows
        return self.computed(*given)[: packing.total]

    def compute(
        self,
        xt: Float[Tensor, "rows outputs"],
        t: Float[Tensor, " J"],
        owners: Owners,
        attend: Attend,
        attend_memory: Attend,
        memory: Float[Tensor, "memory D"],
    ) -> Float[Tensor, "rows outputs"]:
        """The velocity, and what lies behind it."""
        context = silu(self.embed_time(fourier(t, self.time_features)))
        x = self.embed(xt)
        modulated = self.blocks.modulations(context, owners, x.dtype)
        return self.out(self.norm(self.blocks(x, modulated, attend, attend_memory, memory)))
