"""Attention within jets, on packed tokens.

``plan`` looks at the packing of a batch once; the function it returns is called in every block.
All back ends compute the same thing, which ``reference`` defines: each query attends to the keys of
its own jet, and a query whose jet has no keys gets zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.padded import Boxes, attention
from jetssl_cli.errors import ConfigError

Heads = Float[Tensor, "T H K"]
Keys = Float[Tensor, "M H K"]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v) -> out, each (tokens, heads, width of a head)."""
STEP_OF_HEADS = 8
"""FlashAttention in PyTorch takes heads whose width is a multiple of this."""
Backend = Literal["auto", "triton", "flash-attn", "varlen", "padded", "reference"]
MOST_WIDTH = 64
"""Numbers of a head that a tile of our kernels has room for."""
HALF_PRECISION: tuple[Backend, ...] = ("triton", "flash-attn", "varlen")
"""Kernels of a GPU, which do not compute in float32."""


def plan(
    queries: Packing,
    keys: Packing | None = None,
    *,
    causal: bool = False,
    backend: Backend = "auto",
) -> Attend:
    """Prepare attention of ``queries`` to ``keys`` (to themselves, if none are given).

    With ``causal`` (self-attention only) a token attends to those before it in its jet and itself.
    Tensors have the ``rows`` of their packing; what comes out of rows that are no tokens is finite.
    """
    assert keys is None or not causal, "causal attention is self-attention"
    keys = queries if keys is None else keys
    if backend == "auto":
        backend = _best(keys)
    attend = _PLANS[backend](queries, keys, causal)
    if isinstance(attend, Tiled):
        return attend
    return torch.compiler.disable(attend)  # type: ignore[no-untyped-call]


def reference(queries: Packing, keys: Packing, causal: bool) -> Attend:
    """The definition, one jet at a time: softmax(q k^T / sqrt(K)) v, Vaswani et al. (1)."""

    def attend(q: Heads, k: Keys, v: Keys) -> Heads:
        out = []
        bounds = (pairwise(side.host.tolist()) for side in (queries, keys))
        for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
            logits = torch.einsum("qhd,khd->hqk", q[q0:q1], k[k0:k1]) / q.shape[-1] ** 0.5
            if causal:
                later = torch.ones_like(logits[0], dtype=torch.bool).triu(1)
                logits = logits.masked_fill(later, -torch.inf)
            out.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), v[k0:k1]))
        return torch.cat([*out, torch.zeros_like(q[queries.total :])])

    return attend


def padded(queries: Packing, keys: Packing, causal: bool) -> Attend:
    """Jets of similar length are padded to one length and go through dense matrix products."""

    @cache
    def boxes(heads: int, rows: tuple[int, int], dtype: torch.dtype) -> Boxes:
        return Boxes.of(queries, keys, causal=causal, heads=heads, rows=rows, dtype=dtype)

    def attend(q: Heads, k: Keys, v: Keys) -> Heads:
        return attention(q, k, v, boxes(q.shape[1], (len(q), len(k)), q.dtype))

    return attend


@dataclass(frozen=True)
class Tiled:
    """Attention of short jets by kernels of our own: a value, which can be recorded.

    Heads that are too wide for them go through PyTorch's.
    """

    q_bounds: Int[Tensor, " bounds"]
    k_bounds: Int[Tensor, " bounds"]
    q_tile: int
    k_tile: int
    causal: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; see ``Attend``."""
        bounds = self.q_bounds, self.k_bounds, self.q_tile, self.k_tile
        if not self.holds(q.shape[-1]):
            return _varlen_attn(q, k, v, *bounds, self.causal)
        return self._tiles((q, k, v), None, 0.0)

    def holds(self, width: int) -> bool:
        """Whether our kernels have room for heads of this width."""
        return width <= MOST_WIDTH

    def normed(self, parts: Sequence[Tensor], weights: tuple[Tensor, Tensor], eps: float) -> Heads:
        """Attend with queries and keys over their root mean square, times these weights.

        Queries, keys and values may lie in one tensor, (T, 3, H, K), or the latter two in one.
        """
        return self._tiles(parts, weights, eps)

    def _tiles(
        self, parts: Sequence[Tensor], weights: tuple[Tensor, Tensor] | None, eps: float
    ) -> Tensor:
        from jetssl_cli.encoder.tiles import attention

        bounds = self.q_bounds, self.k_bounds, self.q_tile, self.k_tile
        return attention(parts, *bounds, causal=self.causal, weights=weights, eps=eps)


def triton(queries: Packing, keys: Packing, causal: bool) -> Attend:
    """Kernels of our own, in which short jets leave less empty; CUDA, half precision.

    Where a jet is too long for them, the batch goes through ``varlen``.
    """
    if keys.tile > _most_keys():
        return varlen(queries, keys, causal)
    return Tiled(queries.bounds, keys.bounds, queries.tile, keys.tile, causal)


def varlen(queries: Packing, keys: Packing, causal: bool) -> Attend:
    """FlashAttention on packed tokens as built into PyTorch; CUDA, half precision."""
    bounds = queries.bounds, keys.bounds, queries.tile, keys.tile
    return lambda q, k, v: _varlen_attn(q, k, v, *bounds, causal)


def _varlen_attn(  # noqa: PLR0913
    q: Heads, k: Keys, v: Keys, q_bounds: Tensor, k_bounds: Tensor,
    q_most: int, k_most: int, causal: bool,
) -> Heads:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    if not (len(q) and len(k)):
        return _nothing(q, k, v)
    _take_newest_flash()
    width = q.shape[-1]
    if more := -width % STEP_OF_HEADS:
        q, k, v = (pad(x, (0, more)) for x in (q, k, v))
    how: dict[str, Any] = {"window_size": (-1, 0)} if causal else {}
    out = varlen_attn(q, k, v, q_bounds, k_bounds, q_most, k_most, scale=width**-0.5, **how)
    assert isinstance(out, Tensor)
    return out[..., :width]


def flash_attn(queries: Packing, keys: Packing, causal: bool) -> Attend:
    """FlashAttention from the ``flash-attn`` package; CUDA, half precision."""
    from flash_attn import flash_attn_varlen_func

    if not (queries.rows and keys.rows):
        return _nothing
    return partial(
        flash_attn_varlen_func,
        cu_seqlens_q=queries.bounds,
        cu_seqlens_k=keys.bounds,
        max_seqlen_q=queries.tile,
        max_seqlen_k=keys.tile,
        causal=causal,
    )


def _nothing(q: Heads, k: Keys, v: Keys) -> Heads:
    """Attention where there are no queries, or no keys: kernels need both."""
    return q * 0 + 0 * (k.sum() + v.sum())


_PLANS: dict[str, Callable[[Packing, Packing, bool], Attend]] = {
    "triton": triton,
    "flash-attn": flash_attn,
    "varlen": varlen,
    "padded": padded,
    "reference": reference,
}


def require(backend: Backend) -> None:
    """Check that a back end can run on this machine.

    Raises:
        ConfigError: it needs a GPU, or a package that is not installed.
    """
    if backend in HALF_PRECISION and not has_flash_attention():
        raise ConfigError(
            f"encoder.attention = {backend!r}: needs a CUDA GPU of compute capability 8.0 or more"
        )
    missing = {"flash-attn": not _has_flash_attn(), "triton": not has_triton()}
    if missing.get(backend):
        raise ConfigError(f"encoder.attention = {backend!r}: the package {backend} is missing")


def has_flash_attention() -> bool:
    """Whether the GPU, if there is one, runs FlashAttention and bf16 (Ampere and later)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


@cache
def _has_flash_attn() -> bool:
    """Whether version 2 of flash-attn is installed: of version 4 there is a namespace alone."""
    found = find_spec("flash_attn")
    return found is not None and found.origin is not None


@cache
def has_triton() -> bool:
    """Whether Triton, which comes with PyTorch for CUDA, is installed."""
    return find_spec("triton") is not None


@cache
def _most_keys() -> int:
    """Tokens of a jet that a tile has room for; GPUs with less shared memory were not tried."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return 256 if gpu.shared_memory_per_multiprocessor >= 128 * 2**10 else 128


def has_fast_bf16() -> bool:
    """Whether bf16 is faster than float32 here: on such a GPU, or on a CPU with instructions."""
    if torch.cuda.is_available():
        return has_flash_attention()
    can = cpu_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def cpu_capabilities() -> Mapping[str, object]:
    """What the CPU can do, by PyTorch's names; nothing is known of it where PyTorch is too old."""
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


@cache
def _take_newest_flash() -> None:
    """Let ``varlen_attn`` run FlashAttention 4 or 3 where it is installed and fits the GPU."""
    from torch.nn.attention import activate_flash_attention_impl

    generation = torch.cuda.get_device_capability()[0]
    known = ("FA4", "flash_attn.cute", (9, 10)), ("FA3", "flash_attn_interface", (9,))
    for name, package, fits in known:
        parent = package.partition(".")[0]
        if generation in fits and find_spec(parent) and find_spec(package):
            activate_flash_attention_impl(name)
            return


def _best(keys: Packing) -> Backend:
    """On CUDA in half precision our own kernels, or FlashAttention where jets are long."""
    half = (torch.float16, torch.bfloat16)
    if keys.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return "padded"
    if not has_flash_attention():
        return "padded"
    if torch.get_autocast_dtype("cuda") not in half:
        return "padded"
    if has_triton() and keys.tile <= _most_keys():
        return "triton"
    return "flash-attn" if _has_flash_attn() else "varlen"
