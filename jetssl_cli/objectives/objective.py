"""The contract between a method and the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.errors import ConfigError


def width_beside(encoder: Encoder, given: int | None, setting: str) -> int:
    """Width of a network beside the encoder: as given, or half as wide.

    Raises:
        ConfigError: it is not a multiple of the encoder's heads.
    """
    width, heads = given or encoder.width // 2, encoder.cfg.heads
    if width % heads:
        raise ConfigError(
            f"objective.{setting} = {width}: must be a multiple of encoder.heads = {heads}"
        )
    return width


@dataclass(frozen=True)
class Sampling:
    """How jets are generated; each method uses what concerns it."""

    steps: int = 50
    """Steps of an integration."""
    temperature: float = 1.0
    """Of the softmax from which words are drawn."""


@dataclass(frozen=True)
class Generated:
    """Jets of which some constituents were generated."""

    kept: Bool[Tensor, " T"]
    """True for the constituents of the batch that stay."""
    made: JetBatch
    """Those in the place of the others, with scaled features; in no particular order."""


class Objective(nn.Module):
    """An encoder and the loss that trains it.

    The loop owns the optimizer, the schedule, logging, the probe, precision and checkpoints; an
    objective computes.
    """

    encoder: Encoder
    classifies: bool = False
    """It is trained on the labels, and answers with ``logits`` of the classes."""
    generates: bool = False
    """It has learned to make constituents, and answers to ``generate``."""
    downstream: bool = False
    """It is trained on labels or other truth, so that no probe has to watch its encoder."""
    subjet_radius: float | None = None
    """Its batches come with subjets of this radius."""
    truth: Mapping[str, Sequence[str] | None] = MappingProxyType({})
    """Its batches come with this truth about constituents: column -> names of the numbers 0, 1, ...
    where they are classes."""

    def logits(self, batch: JetBatch) -> Float[Tensor, "J C"]:
        """Logits of the classes, of an objective that classifies."""
        raise NotImplementedError(type(self).__name__)

    def loss_of(
        self, logits: Float[Tensor, "J C"], labels: Int[Tensor, " J"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss, of an objective that classifies."""
        raise NotImplementedError(type(self).__name__)

    def loss(self, batch: JetBatch, rng: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """The terms to minimise, which the loop adds up.

        All randomness but that of dropout comes from ``rng``.
        """
        raise NotImplementedError(type(self).__name__)

    def generate(self, batch: JetBatch, rng: torch.Generator, how: Sampling) -> Generated:
        """New constituents for a batch in physical units, of an objective that generates."""
        raise NotImplementedError(type(self).__name__)

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step; ``progress`` runs from 0 to 1 over the run."""

    def diagnostics(self) -> dict[str, float]:
        """Signs of collapse of the method's own, measured over the calls of ``loss`` since last."""
        return {}

    def exported(self) -> Encoder:
        """The encoder worth keeping."""
        return self.encoder
