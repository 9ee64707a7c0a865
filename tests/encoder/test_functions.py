"""Functions with derivatives of their own: equal to their definitions, in values and gradients."""

from __future__ import annotations

import pytest
import torch

from jetssl_cli.batch import Owners
from jetssl_cli.encoder import functions
from jetssl_cli.encoder.transformer import mlp

OWNER = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3, 0])
"""Of three, no, two and four tokens, and of a row that is none."""
BOUNDS = torch.tensor([0, 3, 3, 5, 9, 9, 10], dtype=torch.int32)
WIDTH = 6


def owners(x):
    return Owners(OWNER.to(x.device), BOUNDS.to(x.device))


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + functions.EPS).sqrt()


def spread(x):
    return x.var(-1, correction=0, keepdim=True)


def silu(x):
    return x / (1 + torch.exp(-x))


def each(found):
    return found if isinstance(found, tuple) else (found,)


CASES = {
    "rms_norm": (functions.rms_norm, lambda x, w: norm(x) * w, [(10, 3, WIDTH), (WIDTH,)]),
    "modulated_norm": (
        lambda x, scale, shift: functions.modulated_norm(x, scale, shift, owners(x)),
        lambda x, scale, shift: (norm(x) * scale[OWNER] + shift[OWNER], x),
        [(10, WIDTH), (4, WIDTH), (4, WIDTH)],
    ),
    "modulated_norm, nothing beside": (
        lambda x, scale, shift: functions.modulated_norm(x, scale, shift, owners(x))[0],
        lambda x, scale, shift: norm(x) * scale[OWNER] + shift[OWNER],
        [(10, WIDTH), (4, WIDTH), (4, WIDTH)],
    ),
    "rms_norm_beside": (
        functions.rms_norm_beside,
        lambda x, w: (norm(x) * w, x),
        [(10, WIDTH), (WIDTH,)],
    ),
    "gated": (
        lambda x, y, gate: functions.gated(x, y, gate, owners(x)),
        lambda x, y, gate: x + gate[OWNER] * y,
        [(10, WIDTH), (10, WIDTH), (4, WIDTH)],
    ),
    "layer_norm": (
        lambda x, w, b: functions.layer_norm(x, w, b, 1e-5),
        lambda x, w, b: w * (x - x.mean(-1, keepdim=True)) / (spread(x) + 1e-5).sqrt() + b,
        [(10, WIDTH), (WIDTH,), (WIDTH,)],
    ),
    "linear": (
        functions.linear,
        lambda x, w, b: x @ w.T + b,
        [(10, 3, WIDTH), (5, WIDTH), (5,)],
    ),
    "swiglu": (
        functions.swiglu,
        lambda x: silu(x[:, :WIDTH]) * x[:, WIDTH:],
        [(10, 2 * WIDTH)],
    ),
}


GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case, dtype, device):
    """Under autocast, which changes nothing: the types are those of the tokens."""
    fast, definition, shapes = CASES[case]
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]
    found = []
    for function, precision, place in ((fast, dtype, device), (definition, torch.float64, "cpu")):
        inputs = [x.to(place, precision, copy=True).requires_grad_() for x in start]
        with torch.autocast(place, torch.bfloat16, enabled=dtype == torch.bfloat16):
            outs = each(function(*inputs))
        rng = torch.Generator().manual_seed(1)
        above = [torch.randn(out.shape, generator=rng).to(out) for out in outs]
        above[0][BOUNDS[-2] :] = 0  # rows that are no tokens have none
        torch.autograd.backward(outs, above)
        found.append([*(out.detach().cpu() for out in outs), *(x.grad.cpu() for x in inputs)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for one, other in zip(*found, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_no_input_is_overwritten(case):
    fast, _, shapes = CASES[case]
    inputs = [torch.randn(shape) for shape in shapes]
    copies = [x.clone().requires_grad_() for x in inputs]
    out, *_ = each(fast(*copies))
    grad = torch.randn(out.shape)
    kept = grad.clone()
    out.backward(grad)
    assert torch.equal(grad, kept)
    for copy, x in zip(copies, inputs, strict=True):
        assert torch.equal(copy, x)


def test_a_token_of_zeros_has_a_finite_norm():
    x = torch.zeros(2, WIDTH, requires_grad=True)
    out = functions.rms_norm(x, torch.ones(WIDTH))
    out.sum().backward()
    assert (out == 0).all()
    assert x.grad.isfinite().all()


def test_gradients_of_an_mlp_in_half_precision_add_up_over_many_rows():
    """In bf16 sums of thousands of rows come to a standstill."""
    rng = torch.Generator().manual_seed(0)
    x, weights = torch.randn(11_000, 7, generator=rng), torch.rand(11_000, 32, generator=rng)
    torch.manual_seed(0)
    network, found = mlp(7, 64, 64, 32), []
    for half in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = network(x)
        (out * weights).sum().backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, wanted in found[0].items():
        assert (found[1][name] - wanted).norm() < 0.04 * wanted.norm(), name
