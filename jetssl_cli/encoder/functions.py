"""Functions with their derivatives written out: autograd's own take several times as long.

Each is equal to its plain definition, in values and in gradients. Every step is one pass over the
tokens in their own precision; statistics of a token are summed in float32. torch.compile is given
the definitions, which it fuses by itself; on a GPU there is a kernel for each (``fused.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import silu

from jetssl_cli.batch import Owners
from jetssl_cli.encoder.attention import has_triton

Tokens = Float[Tensor, "*rows D"]
EPS = 1e-6
"""Added to the mean square of a token."""


def rms_norm(x: Float[Tensor, "*rows D"], weight: Float[Tensor, " D"]) -> Float[Tensor, "*rows D"]:
    """Compute x / rms(x) * weight; Zhang and Sennrich, arXiv:1910.07467, (4)."""
    return rms_norm_beside(x, weight)[0]


def rms_norm_beside(x: Tokens, weight: Float[Tensor, " D"]) -> tuple[Tokens, Tokens]:
    """As ``rms_norm``; and x itself, for a branch beside which it goes on.

    On a GPU its gradient is added to that of the norm in one pass.
    """
    if torch.compiler.is_compiling():
        return (_normed(x) * weight).to(x.dtype), x
    if _has_kernels(x):
        from jetssl_cli.encoder import fused

        return fused.rms_norm(x, weight, EPS)
    return _RMSNorm.apply(x, weight), x  # type: ignore[no-untyped-call]


def modulated_norm(
    x: Tokens,
    scale: Float[Tensor, "*jets D"],
    shift: Float[Tensor, "*jets D"],
    owners: Owners | None,
) -> tuple[Tokens, Tokens]:
    """Compute x / rms(x) * scale + shift, those being of the jet; and x, as ``rms_norm_beside``.

    Without owners they are spread by their shape, (J, 1, D) over (J, N, D); no derivatives then.
    """
    if torch.compiler.is_compiling():
        return (_normed(x) * _spread(scale, owners) + _spread(shift, owners)).to(x.dtype), x
    if owners is None:
        return torch.addcmul(shift, x * _inverse_rms(x), scale), x
    if _has_kernels(x):
        from jetssl_cli.encoder import fused

        return fused.modulated_norm(x, scale, shift, owners, EPS)
    return _ModulatedNorm.apply(x, scale, shift, owners.rows), x  # type: ignore[no-untyped-call]


def layer_norm(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, " D"], bias: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*rows D"]:
    """Compute (x - mean) / std * weight + bias in float32; Ba et al., arXiv:1607.06450, (3).

    In bf16, as autocast leaves it on a CPU, PyTorch adds up the gradients of weight and bias in
    bf16 too, and loses most of them where there are thousands of rows.
    """
    if _has_kernels(x):
        from jetssl_cli.encoder import fused

        return fused.layer_norm(x, weight, bias, eps)
    wide, scale, shift = (part.to(_wide(x.dtype)) for part in (x, weight, bias))
    return torch.nn.functional.layer_norm(wide, weight.shape, scale, shift, eps).to(x.dtype)


def linear(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, " E"]
) -> Float[Tensor, "*rows E"]:
    """Compute x W^T + b, under autocast in half precision."""
    if not _has_kernels(x):
        return torch.nn.functional.linear(x, weight, bias)
    from jetssl_cli.encoder import fused

    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        x, weight, bias = x.to(half), weight.to(half), bias.to(half)
    return fused.linear(x, weight, bias)


def swiglu(x: Float[Tensor, "*rows two_hidden"]) -> Float[Tensor, "*rows hidden"]:
    """silu(first half) * second half; Shazeer, arXiv:2002.05202, (5)."""
    if torch.compiler.is_compiling():
        gate, value = x.chunk(2, -1)
        return silu(gate) * value
    if _has_kernels(x):
        from jetssl_cli.encoder import fused

        return fused.swiglu(x)
    out: Tensor = _SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return out


def gated(
    x: Tokens,
    y: Tokens,
    gate: Float[Tensor, "*jets D"],
    owners: Owners | None,
) -> Tokens:
    """Compute x + gate * y, with the gate of the jet that owns the token; as ``modulated_norm``."""
    if torch.compiler.is_compiling():
        return x + _spread(gate, owners) * y
    if owners is None:
        return torch.addcmul(x, y, gate)
    if _has_kernels(x):
        from jetssl_cli.encoder import fused

        return fused.gated(x, y, gate, owners)
    out: Tensor = _Gated.apply(x, y, gate, owners.rows)  # type: ignore[no-untyped-call]
    return out


def _has_kernels(x: Tensor) -> bool:
    """Whether there are kernels of ours for such numbers."""
    return x.is_cuda and x.dtype != torch.float64 and has_triton()


def _spread(of_jets: Tensor, owners: Owners | None) -> Tensor:
    """To all rows what belongs to their jet."""
    return of_jets if owners is None else of_jets.index_select(0, owners.rows)


def _normed(x: Tensor) -> Tensor:
    x = x.to(_wide(x.dtype))
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


def _inverse_rms(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).to(_wide(x.dtype))
    return norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_().to(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _norm_backward(inverse: Tensor, normed: Tensor, grad: Tensor) -> Tensor:
    """Gradient of x, given that of normed = x * inverse, which is overwritten."""
    along = (grad * normed).sum(-1, keepdim=True).div_(grad.shape[-1])
    return grad.addcmul_(normed, along, value=-1).mul_(inverse)


def _over_jets(grad: Tensor, owner: Tensor, jets: int) -> Tensor:
    return grad.new_zeros(jets, grad.shape[1]).index_add_(0, owner, grad)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inverse = _inverse_rms(x)
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, inverse, weight = ctx.saved_tensors
        normed = x * inverse
        of_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        return _norm_backward(inverse, normed, grad * weight.to(x.dtype)), of_weight


class _ModulatedNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, owner: Tensor) -> Tensor:
        inverse = _inverse_rms(x)
        ctx.save_for_backward(x, inverse, scale, owner)
        normed = x * inverse
        return normed.mul_(scale.index_select(0, owner)).add_(shift.index_select(0, owner))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        x, inverse, scale, owner = ctx.saved_tensors
        normed = x * inverse
        of_scale = _over_jets(grad * normed, owner, len(scale))
        of_shift = _over_jets(grad, owner, len(scale))
        of_x = _norm_backward(inverse, normed, grad * scale.index_select(0, owner))
        return of_x, of_scale, of_shift, None


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate, owner)
        return torch.addcmul(x, y, gate.index_select(0, owner))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        y, gate, owner = ctx.saved_tensors
        of_gate = _over_jets(grad * y, owner, len(gate))
        return grad, grad * gate.index_select(0, owner), of_gate, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, value = x.chunk(2, -1)
        return silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        gate, value = x.chunk(2, -1)
        of_x = torch.empty_like(x)
        of_gate, of_value = of_x.chunk(2, -1)
        torch.mul(grad, silu(gate), out=of_value)
        torch.ops.aten.silu_backward(grad * value, gate, grad_input=of_gate)
        return of_x
