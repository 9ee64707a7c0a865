"""Norms, gates, SwiGLU and linear layers on a GPU: kernels of our own, with their derivatives.

``functions.py`` has the same for other devices.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jetssl_cli.batch import Owners
from jetssl_cli.encoder import rowwise as kernels
from jetssl_cli.encoder import sums
from jetssl_cli.encoder.tiles import side_by_side

TILE = 2048
"""Numbers that a program has in hand at once."""


def _programs(x: Tensor) -> tuple[int, dict[str, int]]:
    """How many rows a tensor has, and in what tiles they are gone through."""
    width = x.shape[-1]
    columns = triton.next_power_of_2(width)
    tiles = {"WIDTH": width, "COLUMNS": columns, "ROWS": max(1, TILE // columns)}
    return x.numel() // width, tiles


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute x / rms(x) * weight, and x: gradients of both are added in one pass.

    Args:
        x: (..., D), in half or single precision.
        weight: (D,).
        eps: added to the mean square.
    """
    found: tuple[Tensor, Tensor] = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return found


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, owners: Owners, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute x / rms(x) * scale + shift, and x, as ``rms_norm``.

    Args:
        x: (rows, D).
        scale: (J, D), of the jet that a row belongs to.
        shift: (J, D).
        owners: whose the rows are.
        eps: added to the mean square.
    """
    found: tuple[Tensor, Tensor] = _ModulatedNorm.apply(x, scale, shift, owners, eps)  # type: ignore[no-untyped-call]
    return found


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute (x - mean) / rms(x - mean) * weight + bias; (..., D), (D,) and (D,)."""
    out: Tensor = _LayerNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


def gated(x: Tensor, y: Tensor, gate: Tensor, owners: Owners) -> Tensor:
    """Compute x + gate * y, with the gate of the jet; (rows, D) both, and (J, D)."""
    out: Tensor = _Gated.apply(x, y, gate, owners)  # type: ignore[no-untyped-call]
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x W^T + b; PyTorch's own takes far longer for the derivative of b."""
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def swiglu(x: Tensor) -> Tensor:
    """silu(first half) * second half of the last axis."""
    out: Tensor = _SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return out


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _normed(x, weight, eps), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, norm = _before_norm(x, weight, above, ctx.eps)
        if not ctx.needs_input_grad[1]:
            return of_x, None, None
        (of_weight,) = sums.of_all(norm.above, weight.dtype, norm, plain=False)
        return of_x, of_weight, None


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _normed(x, weight, eps, bias, centred=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, norm = _before_norm(x, weight, (above[0], None), ctx.eps, centred=True)
        if not any(ctx.needs_input_grad[1:3]):
            return of_x, None, None, None
        of_bias, of_weight = sums.of_all(norm.above, weight.dtype, norm)
        return of_x, of_weight, of_bias, None


class _ModulatedNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, owners: Owners, eps: float
    ) -> tuple[Tensor, Tensor]:
        scale, shift = map(side_by_side, (scale, shift))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scale, owners.rows, owners.bounds)
        ctx.eps = eps
        return _normed(x, scale, eps, shift, owners.rows), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        x, scale, owner, bounds = ctx.saved_tensors
        of_x, norm = _before_norm(x, scale, above, ctx.eps, owner)
        of_shift, of_scale = sums.of_jets(norm, bounds, scale)
        return of_x, of_scale, of_shift, None, None


def _normed(
    x: Tensor, scale: Tensor, eps: float, shift: Tensor | None = None,
    owner: Tensor | None = None, *, centred: bool = False,
) -> Tensor:  # fmt: skip
    x = x.contiguous()
    out, (rows, tiles) = torch.empty_like(x), _programs(x)
    if rows:
        kernels.norm[(triton.cdiv(rows, tiles["ROWS"]),)](
            x, scale, shift, owner, out, rows,
            scale.stride(0), 0 if shift is None else shift.stride(0), eps,
            OWNED=owner is not None, CENTRED=centred, **tiles,
        )  # fmt: skip
    return out


def _before_norm(
    x: Tensor, scale: Tensor, above: tuple[Tensor | None, ...], eps: float,
    owner: Tensor | None = None, *, centred: bool = False,
) -> tuple[Tensor, sums.Derived]:  # fmt: skip
    """Gradient of x, from that of what was made of it and that of x beside it."""
    of_normed, kept = above
    of_normed = torch.zeros_like(x) if of_normed is None else of_normed
    x, of_normed = x.contiguous(), of_normed.contiguous()
    kept = None if kept is None else kept.contiguous()
    of_x, (rows, tiles) = torch.empty_like(x), _programs(x)
    inverses = torch.empty(rows, dtype=torch.float32, device=x.device)
    means = torch.empty_like(inverses) if centred else None
    if rows:
        kernels.norm_back[(triton.cdiv(rows, tiles["ROWS"]),)](
            x, scale, owner, of_normed, kept, of_x, inverses, means, rows, scale.stride(0), eps,
            OWNED=owner is not None, KEPT=kept is not None, CENTRED=centred, **tiles,
        )  # fmt: skip
    return of_x, sums.Derived(of_normed, x, inverses, means)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        above = grads[0].contiguous()
        of_x = above @ weight if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = above.flatten(0, -2).T @ x.flatten(0, -2)
        of_bias = sums.of_all(above, above.dtype)[0] if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, owners: Owners) -> Tensor:
        x, y, gate = x.contiguous(), y.contiguous(), side_by_side(gate)
        ctx.save_for_backward(y, gate, owners.bounds)
        out, (rows, tiles) = torch.empty_like(x), _programs(x)
        if rows:
            kernels.gate[(triton.cdiv(rows, tiles["ROWS"]),)](
                x, y, gate, owners.rows, out, rows, gate.stride(0), **tiles
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, bounds = ctx.saved_tensors
        above, tiles = grads[0].contiguous(), sums.tiles_of(y.shape[1])
        of_y, of_gate = torch.empty_like(y), gate.new_empty(gate.shape)
        kernels.gate_back[((len(bounds) - 1) * tiles["PARTS"],)](
            y, gate, above, bounds, of_y, of_gate, len(gate), gate.stride(0), **tiles
        )
        return above, of_y, of_gate, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        rows, tiles = _programs(out)
        if rows:
            kernels.swiglu[(triton.cdiv(rows, tiles["ROWS"]),)](x, out, rows, **tiles)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        above, of_x = grads[0].contiguous(), torch.empty_like(x)
        rows, tiles = _programs(above)
        if rows:
            kernels.swiglu_back[(triton.cdiv(rows, tiles["ROWS"]),)](x, above, of_x, rows, **tiles)
        return of_x
