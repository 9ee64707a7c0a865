"""MPM: masked particle modelling. Say what the hidden constituents of a jet are.

    visible --> encoder --> linear --+
                                     +--> predictor --> head      ~  scaled features
    k-th mask token, one per hidden -+              +-> classify  ~  particle class

For the hidden constituents h, with vectors z_h from the predictor, features x_h and classes c_h:

    loss = mean_h [ d(z_h, x_h) - log softmax(W z_h)[c_h] ]

(Golling et al., arXiv:2401.13537). The distance d is that of the head; such heads are compared in
Leigh et al., arXiv:2409.12589, from where the flow is as well:

    l1      the mean over the features of |U z - x|
    tokens  -log softmax(U z)[k], with k the k-means cluster that x falls into
    flow    the mean over the features of (v(xt, z, t) - (x1 - x))^2 at xt = (1-t) x + t x1, where
            x1 ~ N(0, 1) and t = sigmoid(N(0, 1)), drawn for each constituent by itself

What breaks the tie between hidden constituents, which have no positions: the k-th of a jet, in pT
order, gets the k-th of a learned table of mask tokens. So the head is told the order, not the pT.

Impact parameters of neutral particles count like any other number: their scaled value is 0, which
is right only if the particle is known to be neutral.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import fourier, mlp
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.masking import MaskConfig, RandomMaskConfig
from jetssl_cli.objectives.objective import Objective, width_beside
from jetssl_cli.objectives.predictor import Predictor
from jetssl_cli.objectives.tokens import Tokenizer

Vectors = Float[Tensor, "rows E"]
Terms = dict[str, Float[Tensor, ""]]


class L1HeadConfig(Strict):
    """The features themselves, by their absolute error."""

    name: Literal["l1"] = "l1"
    """Tells the heads apart."""

    @property
    def clusters(self) -> None:
        """It needs no tokenizer."""

    def build(self, width: int, features: int, tokenizer: Tokenizer | None) -> L1Head:
        """A head on vectors of this width."""
        del tokenizer
        return L1Head(width, features)


class TokensHeadConfig(Strict):
    """The k-means cluster of the features, by cross-entropy."""

    name: Literal["tokens"] = "tokens"
    """Tells the heads apart."""
    clusters: PositiveInt = 1000
    """Number of clusters."""

    def build(self, width: int, features: int, tokenizer: Tokenizer | None) -> TokensHead:
        """A head on vectors of this width."""
        del features
        assert tokenizer is not None
        return TokensHead(width, self.clusters, tokenizer)


class FlowHeadConfig(Strict):
    """The distribution of the features, by flow matching."""

    name: Literal["flow"] = "flow"
    """Tells the heads apart."""
    width: PositiveInt = 256
    """Width of its hidden layers."""
    depth: PositiveInt = 2
    """Number of its hidden layers."""
    time_features: PositiveInt = 16
    """Frequencies at which it is told the time."""

    @property
    def clusters(self) -> None:
        """It needs no tokenizer."""

    def build(self, width: int, features: int, tokenizer: Tokenizer | None) -> FlowHead:
        """A head on vectors of this width."""
        del tokenizer
        return FlowHead(self, width, features)


HeadConfig = Annotated[
    L1HeadConfig | TokensHeadConfig | FlowHeadConfig, Field(discriminator="name")
]
"""Settings of any head."""


class MPMConfig(Strict):
    """Settings of masked particle modelling."""

    name: Literal["mpm"] = "mpm"
    """Tells the methods apart."""
    mask: MaskConfig = RandomMaskConfig()
    """What the encoder does not see."""
    head: HeadConfig = L1HeadConfig()
    """How the features of the hidden constituents are predicted."""
    decoder_width: PositiveInt | None = None
    """Width of the decoder; half that of the encoder if not given."""
    decoder_depth: PositiveInt | None = None
    """Blocks of the decoder; as many as the encoder has if not given."""

    @property
    def clusters(self) -> int | None:
        """Clusters of the tokenizer that it needs, if it needs one."""
        return self.head.clusters

    def build(self, encoder: Encoder, tokenizer: Tokenizer | None = None) -> MPM:
        """Put a decoder and its heads on top of the encoder.

        Raises:
            ConfigError: the width of the decoder is not a multiple of the encoder's heads.
        """
        return MPM(self, encoder, tokenizer)


class MPM(Objective):
    """See the top of the module."""

    def __init__(self, cfg: MPMConfig, encoder: Encoder, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self.cfg = cfg
        self.subjet_radius = cfg.mask.subjet_radius
        self.encoder = encoder
        width = width_beside(encoder, cfg.decoder_width, "decoder_width")
        self.predictor = Predictor(
            encoder_width=encoder.width,
            width=width,
            depth=cfg.decoder_depth or encoder.cfg.depth,
            heads=encoder.cfg.heads,
        )
        self.head = cfg.head.build(width, encoder.num_features, tokenizer)
        self.classify = nn.Linear(width, encoder.num_ids) if encoder.num_ids else None

    def loss(self, batch: JetBatch, rng: torch.Generator) -> Terms:
        """Means over all hidden constituents: of the head, and of the cross-entropy of the class.

        Where the data set has no particle classes, the head is all there is.
        """
        split = self.cfg.mask.split(self.encoder.scale(batch), rng)
        unseen = split.unseen
        vectors = self.predictor(self.encoder.encode(split.seen), unseen.packing)
        terms: Terms = self.head(vectors, unseen.features, rng)
        if self.classify is not None:
            logits = self.classify(vectors)[: unseen.packing.total].float()
            terms["class"] = parallel.mean(cross_entropy(logits, unseen.ids, reduction="none"))
        return terms


class L1Head(nn.Module):
    """Mean absolute error of the scaled features."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, features)

    def forward(self, vectors: Vectors, x: Float[Tensor, "T F"], rng: torch.Generator) -> Terms:
        """The term "features"."""
        del rng
        return {"features": parallel.mean((self.out(vectors)[: len(x)].float() - x).abs())}


class TokensHead(nn.Module):
    """Cross-entropy of the k-means cluster."""

    tokenizer: Tokenizer

    def __init__(self, width: int, clusters: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.out = nn.Linear(width, clusters)

    def forward(self, vectors: Vectors, x: Float[Tensor, "T F"], rng: torch.Generator) -> Terms:
        """The term "token"."""
        del rng
        tokens = self.tokenizer.encode(x)
        errors = cross_entropy(self.out(vectors)[: len(x)].float(), tokens, reduction="none")
        return {"token": parallel.mean(errors)}


class FlowHead(nn.Module):
    """Mean squared error of the velocity that leads from noise to the features."""

    def __init__(self, cfg: FlowHeadConfig, width: int, features: int) -> None:
        super().__init__()
        self.time_features = cfg.time_features
        inputs = features + width + 2 * cfg.time_features
        self.velocity = mlp(inputs, *[cfg.width] * cfg.depth, features)

    def forward(self, vectors: Vectors, x: Float[Tensor, "T F"], rng: torch.Generator) -> Terms:
        """The term "flow"."""
        t = torch.randn(len(x), generator=rng, device=x.device).sigmoid()
        x1 = torch.randn(x.shape, generator=rng, device=x.device)
        xt = (1 - t[:, None]) * x + t[:, None] * x1
        behind = (0, 0, 0, len(vectors) - len(x))
        xt, time = pad(xt, behind), pad(fourier(t, self.time_features), behind)
        velocity = self.velocity(torch.cat([xt, vectors, time], dim=1))[: len(x)].float()
        return {"flow": parallel.mean((velocity - (x1 - x)).square())}
