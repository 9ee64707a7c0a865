"""The weights of a network as its CUDA graphs know them, and room for their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Weights:
    """The weights of a network, and room for their gradients, which its graphs share."""

    def __init__(self, network: nn.Module) -> None:
        named = dict(network.named_parameters())
        self.names, self.values = list(named), list(named.values())
        layers = (part for part in network.modules() if isinstance(part, nn.Linear))
        cast = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
        self.cast = [id(p) in cast for p in self.values]
        """Autocast has these in half precision."""
        self.gradients: list[Tensor | None] = [None] * len(named)
        """Where those of the last pass back are; None of weights that never had any."""
        self.anchor = torch.zeros((), requires_grad=True)
        """Stands for all weights in the graph of autograd."""

    def stand_ins(self) -> list[Tensor]:
        """Other tensors with the same numbers, those that are cast still without.

        The weights themselves may hang on earlier graphs of autograd, which belong to another
        stream.
        """
        kind = self.values[0].device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return [
            torch.empty_like(p, dtype=half, requires_grad=p.requires_grad)
            if cast and half is not None
            else p.detach().requires_grad_(p.requires_grad)
            for p, cast in zip(self.values, self.cast, strict=True)
        ]

    @torch.no_grad()
    def cast_into(self, stand_ins: Sequence[Tensor]) -> None:
        """Give those that are cast their numbers, all at once."""
        pairs = zip(stand_ins, self.values, strict=True)
        copy_all([(own, p.detach()) for own, p in pairs if own.dtype != p.dtype])

    def keep(self, found: Sequence[Tensor | None]) -> None:
        """Copy gradients, which lie in memory that is used again, to where they stay."""
        for n, gradient in enumerate(found):
            if gradient is not None and self.gradients[n] is None:
                self.gradients[n] = torch.empty_like(self.values[n])
        pairs = zip(self.gradients, found, strict=True)
        copy_all([(own, new) for own, new in pairs if own is not None and new is not None])

    def put_aside(self) -> None:
        """What weights have as gradients shall not be overwritten by the next pass back."""
        ours = [
            weight
            for weight, own in zip(self.values, self.gradients, strict=True)
            if own is not None
            and weight.grad is not None
            and weight.grad.data_ptr() == own.data_ptr()
        ]
        grads = [weight.grad for weight in ours if weight.grad is not None]
        copies = [torch.empty_like(grad) for grad in grads]
        copy_all(list(zip(copies, grads, strict=True)))
        for weight, copy in zip(ours, copies, strict=True):
            weight.grad = copy

    def hand_over(self, found: Sequence[Tensor | None]) -> None:
        """Add gradients to those that the weights have; of such as have none, they become them."""
        old, more = [], []
        for weight, gradient in zip(self.values, found, strict=True):
            if gradient is None:
                continue
            if weight.grad is None:
                weight.grad = gradient
            else:
                old.append(weight.grad)
                more.append(gradient)
        if old:
            torch._foreach_add_(old, more)


def copy_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair into the first, in a few kernels."""
    kinds = {(own.dtype, new.dtype) for own, new in pairs}
    for kind in kinds:
        chosen = [pair for pair in pairs if (pair[0].dtype, pair[1].dtype) == kind]
        own, new = zip(*chosen, strict=True)
        torch._foreach_copy_(list(own), list(new))
