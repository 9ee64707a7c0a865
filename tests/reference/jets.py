"""Random jets, small networks and non-trivial weights: what the tests of networks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.data.recipe import load_recipe, schema_of
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.schema import Schema
from jetssl_cli.encoder.encoder import Encoder, EncoderConfig

M = TypeVar("M", bound=nn.Module)

SIZES = (3, 0, 1, 7, 2, 0, 12, 1, 5)
"""Jets of all kinds: without, with one and with many constituents."""


def schema() -> Schema:
    """The columns of JetClass: 7 features, 8 particle classes, 5 jet features, 10 classes."""
    return schema_of(load_recipe("jetclass"))


def random_batch(sizes: Sequence[int], seed: int = 0) -> JetBatch:
    """Jets of these sizes with random features in "physical" units."""
    rng = torch.Generator().manual_seed(seed)
    expected = schema()
    total = sum(sizes)
    return JetBatch(
        features=torch.randn(total, len(expected.constituents), generator=rng),
        ids=torch.randint(len(expected.ids), (total,), generator=rng),
        jets=torch.randn(len(sizes), len(expected.jets), generator=rng),
        packing=Packing.of(torch.tensor(sizes, dtype=torch.int64)),
        labels=torch.randint(len(expected.classes), (len(sizes),), generator=rng),
    )


def take(batch: JetBatch, jets: Sequence[int]) -> JetBatch:
    """The chosen jets of a batch, in this order; one jet at a time."""
    bounds = batch.packing.offsets.tolist()
    rows = [row for jet in jets for row in range(bounds[jet], bounds[jet + 1])]
    sizes = [bounds[jet + 1] - bounds[jet] for jet in jets]
    return JetBatch(
        features=batch.features[rows],
        ids=batch.ids[rows],
        jets=batch.jets[list(jets)],
        packing=Packing.of(torch.tensor(sizes, dtype=torch.int64)),
        labels=batch.labels[list(jets)],
        truth=None if batch.truth is None else batch.truth[rows],
    )


def random_scaling(seed: int = 0) -> Scaling:
    """A scaling whose quantiles are those of random normal numbers, different in each column."""
    rng = torch.Generator().manual_seed(seed)
    expected = schema()

    def quantiles(columns: int) -> Tensor:
        centre = torch.randn(columns, 1, generator=rng, dtype=torch.float64) * 0.3
        return torch.randn(columns, 500, generator=rng, dtype=torch.float64).sort(1)[0] + centre

    return Scaling(expected, quantiles(len(expected.constituents)), quantiles(len(expected.jets)))


def tiny_config(**settings: object) -> EncoderConfig:
    """The settings of an encoder that takes no time."""
    small = {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "registers": 3,
        "embedding_width": 8,
        "context_width": 8,
    }
    return EncoderConfig.model_validate(small | settings)


def tiny_encoder(seed: int = 0, **settings: object) -> Encoder:
    """A small encoder in which every parameter differs from its initial value."""
    expected = schema()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = tiny_config(**settings).build(
            random_scaling(), len(expected.constituents), len(expected.ids), len(expected.jets)
        )
    return randomise(encoder, seed)


def randomise(module: M, seed: int = 0, scale: float = 0.4) -> M:
    """Move every parameter away from its initial value, the zero gates and norms included."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng))
    return module


def gradients(
    module: nn.Module, output: Callable[[], Tensor], seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """An output, and the gradients of a random projection of it with respect to all weights."""
    module.zero_grad()
    value = output()
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    (value * weights).sum().backward()
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
    }
    return value.detach(), found


def assert_equal_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare gradients, each to a hundred thousandth of the largest of all."""
    assert found.keys() == wanted.keys()
    size = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * max(size, 1), msg=lambda m, n=name: n + m
        )
