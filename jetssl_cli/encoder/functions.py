"""Functions with their derivatives written out: autograd's own take several times as long.

Each is equal to its plain definition, in values and in gradients. Every step is one pass over the
tokens in their own precision; statistics of a token are summed in float32. torch.compile is given
the definitions, which it fuses by itself. On a GPU, norms are PyTorch's own, which are fused: of
ours, the host would have to send off a kernel for every step.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import silu

from jetssl_cli.batch import Owners

EPS = 1e-6
"""Added to the mean square of a token."""


def rms_norm(x: Float[Tensor, "*rows D"], weight: Float[Tensor, " D"]) -> Float[Tensor, "*rows D"]:
    """Compute x / rms(x) * weight; Zhang and Sennrich, arXiv:1910.07467, (4)."""
    if torch.compiler.is_compiling():
        return (_normed(x) * weight).to(x.dtype)
    if x.is_cuda:
        return rms_norm_in_one(x, weight)
    out: Tensor = _RMSNorm.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def modulated_norm(
    x: Float[Tensor, "*rows D"],
    scale: Float[Tensor, "*jets D"],
    shift: Float[Tensor, "*jets D"],
    owners: Owners | None,
) -> Float[Tensor, "*rows D"]:
    """Compute x / rms(x) * scale + shift, scale and shift being those of the jet.

    Without owners they are spread by their shape, (J, 1, D) over (J, N, D); no derivatives then.
    """
    if (compiling := torch.compiler.is_compiling()) or x.is_cuda:
        normed = _normed(x) if compiling else rms_norm_in_one(x, None)
        return (normed * _spread(scale, owners) + _spread(shift, owners)).to(x.dtype)
    if owners is None:
        return torch.addcmul(shift, x * _inverse_rms(x), scale)
    out: Tensor = _ModulatedNorm.apply(x, scale, shift, owners.rows)  # type: ignore[no-untyped-call]
    return out


def rms_norm_in_one(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, " D"] | None
) -> Float[Tensor, "*rows D"]:
    """The same as ``rms_norm`` by the kernel of PyTorch; autocast would have it in float32."""
    weight = None if weight is None else weight.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, EPS)


def swiglu(x: Float[Tensor, "*rows two_hidden"]) -> Float[Tensor, "*rows hidden"]:
    """silu(first half) * second half; Shazeer, arXiv:2002.05202, (5)."""
    if torch.compiler.is_compiling():
        gate, value = x.chunk(2, -1)
        return silu(gate) * value
    out: Tensor = _SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return out


def gated(
    x: Float[Tensor, "*rows D"],
    y: Float[Tensor, "*rows D"],
    gate: Float[Tensor, "*jets D"],
    owners: Owners | None,
) -> Float[Tensor, "*rows D"]:
    """Compute x + gate * y, with the gate of the jet that owns the token; as ``modulated_norm``."""
    if torch.compiler.is_compiling():
        return x + _spread(gate, owners) * y
    if owners is None:
        return torch.addcmul(x, y, gate)
    out: Tensor = _Gated.apply(x, y, gate, owners.rows)  # type: ignore[no-untyped-call]
    return out


def _spread(of_jets: Tensor, owners: Owners | None) -> Tensor:
    """To all rows what belongs to their jet."""
    if owners is None:
        return of_jets
    if of_jets.is_cuda and torch.compiler.is_compiling():
        out: Tensor = _Spread.apply(of_jets, owners.rows, owners.offsets, owners.longest)  # type: ignore[no-untyped-call]
        return out
    return of_jets.index_select(0, owners.rows)


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


class _Spread(Function):
    """Compiled, its derivative is a kernel without additions that many programs wait for."""

    @staticmethod
    def forward(ctx: Any, of_jets: Tensor, rows: Tensor, offsets: Tensor, longest: int) -> Tensor:
        ctx.save_for_backward(offsets)
        ctx.longest = longest
        return of_jets.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,), (offsets,) = grads, ctx.saved_tensors
        place = torch.arange(ctx.longest, device=grad.device)
        inside = place < offsets.diff()[:, None]
        rows = torch.where(inside, offsets[:-1, None] + place, 0)
        found = torch.where(inside[..., None], grad[rows], 0)  # (J, longest, D), never stored
        return found.sum(1, dtype=_wide(grad.dtype)).to(grad.dtype), None, None, None


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
