"""A trained network that answers for jets in the order they come, as fast as the machine allows.

On a CPU jets are sorted by length, and those of similar length go through the network as one dense
box (``encoder/dense.py``): no token has to be moved for attention, and little is padding. On a GPU,
or where an attention back end is asked for, they go through as packed batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.encoder import dense
from jetssl_cli.encoder.attention import HALF_PRECISION, Backend, has_fast_bf16, require
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.pool import AttentionPool
from jetssl_cli.errors import ConfigError, RunError
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.finetune import load_classifier
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.pretrain import PretrainConfig, build_encoder
from jetssl_cli.runs.probe import jet_vectors

Precision = Literal["auto", "32", "bf16-mixed"]
JETS_PER_BOX, JETS_PER_BATCH = 48, 1000
"""Jets at a time, unless told otherwise: on a CPU so many that a box stays in its cache, and on a
GPU so many that it is busy."""
STEP = 8
"""Lengths of boxes, registers included, are multiples of this: few shapes of matrix products."""


@dataclass(frozen=True, eq=False)
class Network:
    """An encoder, the head of a classifier where there is one, and how they are run."""

    run: Path
    cfg: FinetuneConfig | PretrainConfig
    schema: Schema
    encoder: Encoder
    head: AttentionPool | None
    weights: str
    """Name of the file of the weights in the run's folder."""

    @property
    def max_constituents(self) -> int:
        """The network was trained on the first so many constituents of a jet."""
        return self.cfg.data.max_constituents

    def arithmetic(self, asked: Precision | None) -> Literal["32", "bf16-mixed"]:
        """What to compute in: as asked for, or like the training of the run."""
        precision = asked or self.cfg.train.precision
        if precision == "auto":
            return "bf16-mixed" if has_fast_bf16() else "32"
        return precision


def load_network(run: Path) -> Network:
    """The network of a finetuning run, or the backbone of a pretraining run.

    Raises:
        RunError: not a run, or one without weights.
    """
    if checkpoint.read_command(run) == "pretrain":
        cfg = checkpoint.read_config(run, PretrainConfig)
        schema = checkpoint.read_schema(run)
        encoder = build_encoder(cfg.encoder.anywhere, Scaling.unfitted(schema), schema)
        weightfile.restore(run / checkpoint.BACKBONE, encoder)
        return Network(run, cfg, schema, encoder.eval(), None, checkpoint.BACKBONE)
    finetuned, schema, classifier = load_classifier(run)
    encoder, head = classifier.encoder, classifier.pool
    return Network(run, finetuned, schema, encoder, head, checkpoint.MODEL)


@dataclass(frozen=True)
class Answers:
    """What a network says of J jets, in float32."""

    logits: Float[np.ndarray, "J C"]
    """Of a classifier; of a backbone alone there are none, (J, 0)."""
    vectors: Float[np.ndarray, "J D"]
    """Mean of what the encoder makes of the constituents and registers of each jet."""

    @property
    def scores(self) -> Float[np.ndarray, "J C"]:
        """Softmax of the logits, taken in float32."""
        return torch.from_numpy(self.logits).softmax(-1).numpy()


class Predictor:
    """Runs a network on jets."""

    def __init__(
        self,
        network: Network,
        *,
        precision: Precision | None = None,
        attention: Backend = "auto",
        batch_size: int | None = None,
    ) -> None:
        """Put the network where it runs fastest.

        Raises:
            ConfigError: the attention back end cannot run on this machine, or not in the precision.
        """
        require(attention)
        self.network = network
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = network.arithmetic(precision)
        if attention in HALF_PRECISION and self.precision == "32":
            raise ConfigError(
                f"--attention {attention} computes in half precision, but the precision is 32"
            )
        self.encoder = network.encoder.to(self.device)
        self.encoder.cfg = self.encoder.cfg.model_copy(update={"attention": attention})
        self.head = None if network.head is None else network.head.to(self.device)
        self.in_boxes = self.device.type == "cpu" and attention == "auto"
        self.batch_size = batch_size or (JETS_PER_BOX if self.in_boxes else JETS_PER_BATCH)

    @torch.inference_mode()
    def __call__(self, jets: JetArrays) -> Answers:
        """Answer for each jet, in the order given; float32 whatever the network computes in.

        Raises:
            RunError: an answer is not finite.
        """
        order = np.argsort(-jets.sizes, kind="stable")
        parts: list[tuple[Tensor, Tensor]] = []
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16-mixed"):
            for start in range(0, len(order), self.batch_size):
                batch = to_batch(jets.take(order[start : start + self.batch_size]))
                parts.append(self._answer(batch.to(self.device)))
        back = np.argsort(order)
        logits, vectors = (
            torch.cat(part).float().cpu().numpy()[back] for part in zip(*parts, strict=True)
        )
        if not (np.isfinite(vectors).all() and np.isfinite(logits).all()):
            raise RunError(
                f"{self.network.run}: the network answers with numbers that are not finite"
            )
        return Answers(logits, vectors)

    def _answer(self, batch: JetBatch) -> tuple[Tensor, Tensor]:
        """Logits and vectors of a batch."""
        if not self.in_boxes:
            encoded = self.encoder(batch)
            vectors = jet_vectors(encoded)
            return vectors[:, :0] if self.head is None else self.head(encoded), vectors
        scaled, registers = self.encoder.scale(batch), self.encoder.cfg.registers
        length = -(-(scaled.packing.longest + registers) // STEP) * STEP - registers
        mask, lay = dense.boxes(scaled.packing, max(length, 1))
        tokens, real = dense.encode(
            self.encoder, lay(scaled.features), lay(scaled.ids), mask, scaled.jets
        )
        vectors = dense.mean(tokens, real)
        logits = vectors[:, :0] if self.head is None else dense.pool(self.head, tokens, real)
        return logits, vectors
