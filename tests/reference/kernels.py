"""Losses and gradients by the kernels of a GPU against those without, in single precision.

python tests/reference/kernels.py METHOD ...

Where there is no GPU, Triton's interpreter runs them with TRITON_INTERPRET=1: half a minute for
each method.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from reference.jets import random_batch, tiny_encoder
from reference.recorded import CONFIGS

from jetssl_cli.data.tokenizer import Tokenizer
from jetssl_cli.encoder import attention, functions

SIZES = [3, 0, 11, 1, 7, 0, 5, 9]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MOST_AWAY = {"cuda": 1e-2, "cpu": 1e-5}[DEVICE.type]
"""Relative; in products of our kernels a GPU keeps ten binary digits of a number."""


def gradients(method: str) -> tuple[float, dict[str, torch.Tensor | None]]:
    """The loss and the gradients of all weights, which are nowhere 0 as they are at the start."""
    torch.manual_seed(0)
    encoder = tiny_encoder(width=32, depth=2, causal=method == "gpt")
    centres = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    objective = CONFIGS[method].build(encoder, Tokenizer(centres) if method == "gpt" else None)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    objective.to(DEVICE)
    rng = torch.Generator(DEVICE).manual_seed(0)
    loss = torch.stack(list(objective.loss(random_batch(SIZES).to(DEVICE), rng).values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: p.grad for name, p in objective.named_parameters()}


def with_and_without() -> Iterator[None]:
    """Take no kernels, then take them."""
    for kernels in (False, True):
        asked: list[torch.Tensor] = []

        def has_kernels(x, kernels=kernels, asked=asked):
            asked.append(x)
            return kernels

        attention._best = lambda _, kernels=kernels: "triton" if kernels else "padded"
        attention._most_keys = lambda: 128
        functions._has_kernels = has_kernels
        yield
        assert asked


def main() -> None:
    """Compare, and look whether the kernels were run."""
    for method in sys.argv[1:]:
        found = [gradients(method) for _ in with_and_without()]
        (loss, grads), (other_loss, others) = found
        assert abs(other_loss - loss) < MOST_AWAY * abs(loss), (other_loss, loss)
        worst = 0.0
        for name, grad in grads.items():
            other = others[name]
            assert (grad is None) == (other is None), name
            if grad is not None and other is not None:
                worst = max(worst, ((other - grad).norm() / (grad.norm() + 1e-6)).item())
                assert worst < MOST_AWAY, (name, worst)
        sys.stdout.write(f"{method}: {worst:.1e}\n")


if __name__ == "__main__":
    main()
