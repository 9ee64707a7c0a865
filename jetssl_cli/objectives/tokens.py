"""What an objective asks of a tokenizer: constituents as words, and words as constituents."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """A vocabulary of K constituents; in fact a module, whose state belongs to the network's."""

    def encode(self, scaled: Float[Tensor, "T F"]) -> Int[Tensor, " T"]:
        """The number of the word that is nearest to each constituent."""

    def decode(self, tokens: Int[Tensor, " T"]) -> Float[Tensor, "T F"]:
        """The scaled features that each word stands for."""
