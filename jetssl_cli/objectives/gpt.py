"""GPT: next-particle prediction. Read a jet from its hardest constituent on; say which comes next.

    start   x_1    x_2   ...   x_n        registers, then constituents in descending pT
      |      |      |           |
      +------+------+-- encoder (causal) -- each attends to itself and those before
      |      |      |           |
      +------+------+-- decoder (causal) -- narrower, the same mask; not kept for later
      |      |      |           |
    k_1,c_1 k_2,c_2 k_3,c_3    end        heads: token of the next constituent, and its class

Inputs are the scaled features x themselves; only what is predicted is a word: the k-means cluster k
of the features and, beside it, the particle class c. With s_i the decoder's vector of the i-th
constituent (s_0 of the last register), and k_(n+1) = "the jet ends" as one more word,

    loss = mean_i [ -log p(k_(i+1) | s_i) ] + mean_i [ -log p(c_(i+1) | s_i) ]

(Radford et al., "Improving language understanding by generative pre-training", 2018, (1); for jets
Finke et al., arXiv:2303.07364, and Birk et al., OmniJet-alpha, arXiv:2403.05618).
The first mean is over all constituents and ends, the second over the constituents. Where a jet may
have been cut by the reader, nothing is learned about its end.

The jet features modulate the encoder: it learns p(constituents | jet features), so that jets are
generated for given features, and those that tell the answer (the number of constituents) are used.

No tie has to be broken: at each place one constituent is asked for. Unlike the other methods, this
one uses the order, and its encoder is causal downstream as well.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import Attend, plan
from jetssl_cli.encoder.blocks import Blocks, Recordable
from jetssl_cli.encoder.encoder import Encoded, Encoder
from jetssl_cli.encoder.transformer import Linear, RMSNorm
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.objective import Generated, Objective, Sampling, width_beside
from jetssl_cli.objectives.tokens import Tokenizer


class GPTConfig(Strict):
    """Settings of next-particle prediction."""

    name: Literal["gpt"] = "gpt"
    """Tells the methods apart."""
    clusters: PositiveInt = 1000
    """Words that constituents are told apart by: k-means clusters of their features."""
    decoder_width: PositiveInt | None = None
    """Width of the decoder; half that of the encoder if not given."""
    decoder_depth: NonNegativeInt = 2
    """Blocks of the decoder; with 0 the words are read from the encoder itself."""

    def build(self, encoder: Encoder, tokenizer: Tokenizer | None = None) -> GPT:
        """Put a decoder and the two heads on top of the encoder.

        Raises:
            ConfigError: the encoder is not causal, or has no register to start from, or the width
                of the decoder is not a multiple of its heads.
        """
        if not encoder.cfg.causal:
            raise ConfigError(
                "encoder.causal = false: must be true for objective.name = 'gpt', or the answers "
                "would be seen"
            )
        if not encoder.cfg.registers:
            raise ConfigError(
                "encoder.registers = 0: must be at least 1 for objective.name = 'gpt', which "
                "predicts the first constituent from it"
            )
        assert tokenizer is not None
        return GPT(self, encoder, tokenizer)


class GPT(Objective):
    """See the top of the module."""

    generates = True
    tokenizer: Tokenizer

    def __init__(self, cfg: GPTConfig, encoder: Encoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.end = cfg.clusters
        width = encoder.width
        self.decoder: CausalDecoder | None = None
        if cfg.decoder_depth:
            width = width_beside(encoder, cfg.decoder_width, "decoder_width")
            self.decoder = CausalDecoder(encoder, width=width, depth=cfg.decoder_depth)
        self.token = nn.Linear(width, cfg.clusters + 1)
        self.classify = nn.Linear(width, encoder.num_ids) if encoder.num_ids else None

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Means of the cross-entropy of the next token, and of the next class."""
        del rng
        scaled = self.encoder.scale(batch)
        present = scaled.packing
        asked = Packing.of(_predictions(present.host_sizes, batch.most), present.device)
        vectors = self._before(self.encoder.encode(scaled), asked)
        places = asked.offsets.index_select(0, present.owner) + present.rank
        ends = torch.full((asked.total,), self.end, device=present.device)
        tokens = ends.index_copy(0, places, self.tokenizer.encode(scaled.features))
        logits = self.token(asked.pad(vectors))[: asked.total].float()
        errors = cross_entropy(logits, tokens, reduction="none")
        terms = {"token": parallel.mean(errors)}
        if self.classify is not None:
            vectors = present.pad(vectors.index_select(0, places))
            logits = self.classify(vectors)[: present.total].float()
            terms["class"] = parallel.mean(cross_entropy(logits, scaled.ids, reduction="none"))
        return terms

    def _before(self, encoded: Encoded, asked: Packing) -> Float[Tensor, "asked D"]:
        """The vectors that predict: in each jet, from that of the last register on."""
        start = encoded.packing.offsets[:-1] + self.encoder.cfg.registers - 1
        rows = start.index_select(0, asked.owner) + asked.rank
        return self._decoded(encoded).index_select(0, rows)

    def _decoded(self, encoded: Encoded) -> Float[Tensor, "T D"]:
        """What the heads read: the vectors of registers and constituents."""
        return self.decoder(encoded) if self.decoder is not None else encoded.tokens

    def generate(self, batch: JetBatch, rng: torch.Generator, how: Sampling) -> Generated:
        """Whole jets, given the jet features of the batch."""
        most = batch.most or batch.packing.longest
        jets = self.encoder.scale(batch).jets
        made = self.sample(jets, rng, most=most, temperature=how.temperature)
        return Generated(torch.zeros_like(batch.ids, dtype=torch.bool), made)

    @torch.no_grad()
    def sample(
        self,
        jets: Float[Tensor, "J G"],
        rng: torch.Generator,
        *,
        most: int,
        temperature: float = 1.0,
    ) -> JetBatch:
        """Write jets constituent by constituent, in the order that the network finds.

        A token is read on as the centre of its cluster. All jets that have not ended are encoded
        anew for each constituent. Token and class of a constituent are drawn independently.

        Args:
            jets: scaled jet features.
            rng: draws.
            most: constituents after which a jet is stopped.
            temperature: logits are divided by it; below 1, likely constituents become likelier.

        Returns:
            Jets with scaled features; their order need not be that of pT.
        """
        device = jets.device
        features = torch.zeros(len(jets), most, self.encoder.num_features, device=device)
        ids = torch.zeros(len(jets), most, dtype=torch.int64, device=device)
        sizes, labels = torch.zeros(2, len(jets), dtype=torch.int64, device=device)
        absent = self.encoder.scaling.get_buffer("absent")
        alive = torch.arange(len(jets), device=device)
        for place in range(most):
            so_far = JetBatch(
                features=features[alive, :place].flatten(0, 1),
                ids=ids[alive, :place].flatten(),
                jets=jets[alive],
                packing=Packing.of(torch.full((len(alive),), place), device),
                labels=labels[alive],
            )
            encoded = self.encoder.encode(so_far)
            last = self._decoded(encoded).index_select(0, encoded.packing.offsets[1:] - 1)
            tokens = _draw(self.token(last), rng, temperature)
            on = tokens != self.end
            alive, last, tokens = alive[on], last[on], tokens[on]
            if not len(alive):
                break
            if self.classify is not None:
                ids[alive, place] = _draw(self.classify(last), rng, temperature)
            missing = absent[ids[alive, place]]
            features[alive, place] = self.tokenizer.decode(tokens).masked_fill(missing, 0)
            sizes[alive] += 1
        real = torch.arange(most, device=device) < sizes[:, None]
        return JetBatch(features[real], ids[real], jets, Packing.of(sizes), labels)


class CausalDecoder(Recordable):
    """A transformer between the encoder and the words, without context."""

    def __init__(self, encoder: Encoder, *, width: int, depth: int) -> None:
        super().__init__()
        self.project = Linear(encoder.width, width)
        self.blocks = Blocks(depth, width, encoder.cfg.heads, None)
        self.norm = RMSNorm(width)

    def forward(self, encoded: Encoded) -> Float[Tensor, "T D"]:
        """Vectors of registers and constituents; each knows those before it and itself."""
        attend = plan(encoded.packing, causal=True, backend=encoded.backend)
        return self.computed(encoded.rows, attend)[: encoded.packing.total]

    def compute(self, rows: Float[Tensor, "rows D"], attend: Attend) -> Float[Tensor, "rows E"]:
        """The vectors, and what lies behind them."""
        return self.norm(self.blocks(self.project(rows), None, attend))


def _predictions(sizes: Int[Tensor, " J"], most: int | None) -> Int[Tensor, " J"]:
    """How many predictions a jet has: of its constituents, and of its end if it was not cut."""
    return sizes + 1 if most is None else (sizes + 1).clamp_max(most)


def _draw(
    logits: Float[Tensor, "J N"], rng: torch.Generator, temperature: float
) -> Int[Tensor, " J"]:
    """One of N for each jet."""
    chances = (logits.float() / temperature).softmax(-1)
    return chances.multinomial(1, generator=rng)[:, 0]
