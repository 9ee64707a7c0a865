"""The encoder that all methods share: physical jets in, one vector per token out.

    features --scale--> MLP --+--> [registers, tokens] --> blocks --> norm, linear --> vectors
    class  --embedding--------+                              ^
    jet features --scale--> MLP --> context of the jet ------+

A jet is a set: unless the encoder is causal, nothing in it depends on the place of a constituent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from jetssl_cli.batch import JetBatch, Owners, Packing
from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import Attend, Backend, plan, require
from jetssl_cli.encoder.blocks import Blocks, Modulations, Recordable
from jetssl_cli.encoder.transformer import Linear, RMSNorm, mlp


class EncoderConfig(Strict):
    """Size and parts of the encoder."""

    width: PositiveInt = 512
    """D, the width of a token."""
    depth: PositiveInt = 6
    """Transformer blocks."""
    heads: PositiveInt = 8
    """Attention heads."""
    registers: NonNegativeInt = 8
    """Learned tokens put in front of each jet (Darcet et al., arXiv:2309.16588)."""
    embedding_width: PositiveInt = 128
    """Width of the hidden layers that embed features."""
    context: bool = True
    """Modulate the blocks by the jet features."""
    context_width: PositiveInt = 64
    """Width of the vector that modulates them."""
    causal: bool = False
    """A token attends only to those before it: registers first, then constituents in pT order."""
    recompute: bool = False
    """Keep only what goes into each block, and compute it again for its gradients: less memory,
    more time."""
    attention: Backend = "auto"
    """Attention back end; auto takes FlashAttention where it runs."""

    @model_validator(mode="after")
    def _heads_divide(self) -> EncoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def anywhere(self) -> EncoderConfig:
        """The same with an attention back end that every machine has."""
        return self.model_copy(update={"attention": "auto"})

    @property
    def plain(self) -> EncoderConfig:
        """The same but for how it is computed."""
        return self.model_copy(update={"attention": "auto", "recompute": False})

    def build(self, scaling: nn.Module, features: int, ids: int, jets: int) -> Encoder:
        """Build the encoder.

        Args:
            scaling: scales a batch of physical features; becomes a part of the encoder.
            features: number of constituent features.
            ids: number of particle classes.
            jets: number of jet features.

        Raises:
            ConfigError: the attention back end cannot run on this machine.
        """
        require(self.attention)
        return Encoder(self, scaling, features, ids, jets)


@dataclass(frozen=True)
class Encoded:
    """Vectors of the registers and the constituents of each jet, registers first."""

    rows: Float[Tensor, "rows D"]
    """The vectors; behind them there may be rows that belong to no token (``packing.rows``)."""
    packing: Packing
    constituent_rows: Int[Tensor, " constituents"]
    """Those that belong to constituents, in their order."""
    backend: Backend = "auto"
    """Attention back end for what reads the tokens."""

    @property
    def tokens(self) -> Float[Tensor, "T D"]:
        """The vectors."""
        return self.rows[: self.packing.total]

    @property
    def constituents(self) -> Float[Tensor, "constituents D"]:
        """Vectors of the constituents alone."""
        return self.tokens.index_select(0, self.constituent_rows)


@dataclass(frozen=True)
class Places:
    """Where registers and constituents go among the rows of a network.

    Rows that are no constituents go behind all others.
    """

    registers: Int[Tensor, " registers"]
    constituents: Int[Tensor, " rows"]


@dataclass(frozen=True)
class EncodedBatch(JetBatch):
    """Jets that a frozen encoder has encoded before: the features are its vectors.

    The packing is that of registers and constituents together.
    """

    def encoded(self, cfg: EncoderConfig) -> Encoded:
        """What the encoder has answered, in the type in which it computes."""
        packing, kind = self.packing, self.features.device.type
        half = torch.is_autocast_enabled(kind)
        tokens = self.features.to(torch.get_autocast_dtype(kind) if half else torch.float32)
        constituents = packing.rank >= cfg.registers
        count = packing.total - cfg.registers * packing.num_jets
        rows = torch.nonzero_static(constituents, size=count)[:, 0]
        return Encoded(packing.pad(tokens), packing, rows, cfg.attention)


class Encoder(Recordable):
    """See the top of the module."""

    def __init__(
        self, cfg: EncoderConfig, scaling: nn.Module, features: int, ids: int, jets: int
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.scaling = scaling
        self.num_features, self.num_ids = features, ids
        hidden = cfg.embedding_width
        self.embed = mlp(features, hidden, hidden, cfg.width)
        self.embed_id = nn.Embedding(ids, cfg.width) if ids else None
        self.embed_jet = mlp(jets, hidden, cfg.context_width) if cfg.context else None
        self.registers = nn.Parameter(torch.randn(cfg.registers, cfg.width) * 0.02)
        context_width = cfg.context_width if cfg.context else None
        self.blocks = Blocks(
            cfg.depth, cfg.width, cfg.heads, context_width, recompute=cfg.recompute
        )
        self.norm = RMSNorm(cfg.width)
        self.out = Linear(cfg.width, cfg.width)

    @property
    def width(self) -> int:
        """Width of the vectors that come out."""
        return self.cfg.width

    def levels(self) -> list[list[nn.Parameter]]:
        """The parameters of the embeddings, then those of each block; not what comes after them."""
        embeddings = [self.embed, self.embed_id, self.embed_jet]
        first = [p for part in embeddings if part is not None for p in part.parameters()]
        return [[self.registers, *first], *(list(block.parameters()) for block in self.blocks)]

    def scale(self, batch: JetBatch) -> JetBatch:
        """The batch in the scaled features that ``encode`` takes."""
        scaled: JetBatch = self.scaling(batch)
        return scaled

    def forward(self, batch: JetBatch) -> Encoded:
        """Encode a batch in physical units, or take what was encoded before."""
        if isinstance(batch, EncodedBatch):
            return batch.encoded(self.cfg)
        return self.encode(self.scale(batch))

    def encode(self, scaled: JetBatch) -> Encoded:
        """Encode a batch whose features are scaled already."""
        packing, rows, given = self._prepared(scaled)
        return Encoded(self.computed(*given), packing, rows, self.cfg.attention)

    def compute(self, *given: Any) -> Float[Tensor, "rows D"]:
        """The vectors."""
        return self.out(self.norm(self.blocks(*self._embedded(*given))))

    def layers(
        self, scaled: JetBatch
    ) -> tuple[Packing, Int[Tensor, " constituents"], Iterator[Float[Tensor, "rows D"]]]:
        """What goes into the first block, and what comes out of each, one after the other.

        Returns:
            The packing of registers and constituents; the rows of the constituents; the layers.
        """
        packing, rows, given = self._prepared(scaled)
        return packing, rows, self.blocks.layers(*self._embedded(*given))

    def _prepared(self, scaled: JetBatch) -> tuple[Packing, Tensor, tuple[Any, ...]]:
        """As ``layers``, with what is to be computed from in the place of what is made of it."""
        before = scaled.packing
        front = Packing.of(torch.full((before.num_jets,), self.cfg.registers), before.device)
        packing, registers, rows = front.join(before)
        places = Places(registers, before.pad(rows, packing.rows))
        attend = plan(packing, causal=self.cfg.causal, backend=self.cfg.attention)
        tokens = before.pad(scaled.features), before.pad(scaled.ids)
        return packing, rows, (*tokens, scaled.jets, places, packing.owners, attend)

    def _embedded(
        self,
        features: Float[Tensor, "rows F"],
        ids: Int[Tensor, " rows"],
        jets: Float[Tensor, "J G"],
        places: Places,
        owners: Owners,
        attend: Attend,
    ) -> tuple[Tensor, Modulations | None, Attend]:
        """What the blocks are given."""
        tokens = self.embed(features)
        if self.embed_id is not None:
            tokens = tokens + self.embed_id(ids).to(tokens.dtype)
        registers = self.registers.to(tokens.dtype).repeat(len(jets), 1)
        x = tokens.new_zeros(len(owners.rows) + 1, self.width)
        x.index_copy_(0, places.constituents, tokens).index_copy_(0, places.registers, registers)
        x = x[:-1]
        return x, self.modulated(jets, owners, x.dtype), attend

    def modulated(
        self, jets: Float[Tensor, "J G"], owners: Owners | None, dtype: torch.dtype
    ) -> Modulations | None:
        """The modulations of the blocks; None without a context.

        Args:
            jets: scaled.
            owners: whose the rows are; None for padded tokens, (J, N, D).
            dtype: of the tokens.
        """
        if self.embed_jet is None:
            return None
        context = silu(self.embed_jet(jets))
        context = context if owners is not None else context[:, None]
        return self.blocks.modulations(context, owners, dtype)
