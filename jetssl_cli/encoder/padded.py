"""Attention in dense boxes, the fast path of a CPU: jets of similar length are padded to one.

The softmax is written out, since PyTorch's own attention is many times slower in half precision on
a CPU. Boxes come in few shapes: a matrix product of a new shape costs milliseconds to prepare, and
a softmax over a multiple of 16 is several times as fast as over other lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function

from jetssl_cli.batch import Packing

_softmax_backward = torch.ops.aten._softmax_backward_data

JETS_PER_BOX = 64
MOST_LOGITS = 64 * 192**2
"""Of a head, in all jets of a box: a single very long jet shall not fill the memory."""
STEP = 16
"""Lengths of boxes are multiples of this, apart from 1."""


def attention(
    q: Float[Tensor, "T H K"], k: Float[Tensor, "M H K"], v: Float[Tensor, "M H K"], boxes: Boxes
) -> Float[Tensor, "T H K"]:
    """softmax(q k^T / sqrt(K)) v within each jet; zero without keys."""
    out: Tensor = _Attention.apply(q, k, v, boxes)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Side:
    """Where the heads of the tokens of one packing stand in boxes of (jets, heads, length)."""

    slots: Int[Tensor, " rows_times_H"]
    """The slot of each head of each row; rows that are no tokens share the spare one, the last."""
    sources: Int[Tensor, " slots"]
    """What to put into each slot, by its number among the heads of all rows. Slots that no token
    has are filled from their own jet, and are seen by nobody."""
    stacked: int
    """Jets times heads in each box."""
    lengths: list[int]
    """Length of each box."""
    bounds: list[int]
    """The first slot of each box, and the end of the last."""

    @classmethod
    def of(cls, packing: Packing, jets: Int[Tensor, "boxes jets"], heads: int, rows: int) -> Side:
        """Lay out the jets of each box; of numbers beyond the last jet there is none."""
        per_box, spare = jets.shape[1], jets.numel() - packing.num_jets
        sizes = torch.nn.functional.pad(packing.host_sizes, (0, spare))[jets]
        lengths = torch.tensor([_rounded(int(size)) for size in sizes.amax(1)], dtype=torch.int64)
        bounds = torch.nn.functional.pad((lengths * per_box * heads).cumsum(0), (1, 0))
        first = bounds[:-1, None] + torch.arange(per_box) * heads * lengths[:, None]
        of_jet = torch.empty(2, jets.numel(), dtype=torch.int64)
        of_jet[:, jets.flatten()] = torch.stack(
            [first.flatten(), lengths.repeat_interleave(per_box)]
        )
        first, length = of_jet.to(packing.device, non_blocking=True)[:, packing.owner]
        head = torch.arange(heads, device=packing.device)
        slots = ((first + packing.rank)[:, None] + length[:, None] * head).flatten()
        return cls(
            slots=torch.nn.functional.pad(
                slots, (0, (rows - packing.total) * heads), value=int(bounds[-1])
            ),
            sources=_own_first(packing, jets, lengths, heads).index_copy_(
                0, slots, torch.arange(len(slots), device=packing.device)
            ),
            stacked=per_box * heads,
            lengths=lengths.tolist(),
            bounds=bounds.tolist(),
        )

    def without(self, tokens: Bool[Tensor, " T"], heads: int) -> Side:
        """The same with some tokens, True, in no slot: they read zero, and pass nothing back."""
        gone = torch.nn.functional.pad(
            tokens.repeat_interleave(heads), (0, len(self.slots) - heads * len(tokens)), value=True
        )
        return replace(self, slots=self.slots.masked_fill(gone, self.bounds[-1]))

    def fill(self, x: Float[Tensor, "rows H K"]) -> Float[Tensor, "slots K"]:
        """The tokens in their slots; copies of the first of a jet where there is none."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.sources)

    def fill_with_zeros(self, x: Float[Tensor, "rows H K"]) -> Float[Tensor, "slots K"]:
        """The tokens in their slots; zero where there is none. The spare slot holds anything."""
        slots = x.new_zeros(self.bounds[-1] + 1, x.shape[-1])
        return slots.index_copy_(0, self.slots, x.reshape(-1, x.shape[-1]))

    def empty(self, like: Tensor) -> Float[Tensor, "slots K"]:
        """Slots to be written; zero in the spare one."""
        slots = like.new_empty(self.bounds[-1] + 1, like.shape[-1])
        slots[-1] = 0
        return slots

    def views(self, slots: Float[Tensor, "slots K"]) -> list[Float[Tensor, "_ _ K"]]:
        """The slots of each box, as (jets and heads, length, K)."""
        pairs = zip(self.bounds, self.bounds[1:], self.lengths, strict=False)
        return [
            slots[start:stop].view(self.stacked, n, slots.shape[-1]) for start, stop, n in pairs
        ]

    def read(self, slots: Float[Tensor, "slots K"], heads: int) -> Float[Tensor, "rows H K"]:
        """The tokens in their rows."""
        return slots.index_select(0, self.slots).view(-1, heads, slots.shape[-1])


def _own_first(
    packing: Packing, jets: Int[Tensor, "boxes jets"], lengths: Int[Tensor, " boxes"], heads: int
) -> Int[Tensor, " slots"]:
    """For every slot, that head of the first token of its jet, or of the last of all without."""
    last = max(packing.total - 1, 0)
    first = torch.nn.functional.pad(packing.host[:-1], (0, jets.numel() - packing.num_jets))
    each = first.clamp(max=last)[jets][..., None] * heads + torch.arange(heads)
    repeats = lengths[:, None, None].expand_as(each).flatten()
    return each.flatten().repeat_interleave(repeats).to(packing.device, non_blocking=True)


@dataclass(frozen=True)
class Boxes:
    """Queries and keys in the same boxes."""

    queries: Side
    keys: Side
    biases: list[Float[Tensor, "_ _ _"] | None]
    """Added to the logits of each box: 0 for what may be seen, very negative otherwise; nothing
    where a box has no queries or no keys."""

    @classmethod
    def of(
        cls,
        queries: Packing,
        keys: Packing,
        *,
        causal: bool,
        heads: int,
        rows: tuple[int, int],
        dtype: torch.dtype,
    ) -> Boxes:
        """Sort the jets by length and lay them out.

        Args:
            queries: packing of the queries.
            keys: packing of the keys.
            causal: a token attends to those before it and itself.
            heads: H.
            rows: of the tensors of queries and keys; there may be more than tokens.
            dtype: of the logits.
        """
        order = (queries.host_sizes + keys.host_sizes).argsort(descending=True)
        longest = max(queries.longest, keys.longest, 1)
        per_box = max(1, min(JETS_PER_BOX, len(order), MOST_LOGITS // longest**2))
        spare = torch.arange(len(order), -(-len(order) // per_box) * per_box)
        jets = torch.cat([order, spare]).view(-1, per_box)
        of_queries = Side.of(queries, jets, heads, rows[0])
        of_keys = of_queries
        if keys is not queries:
            of_keys = Side.of(keys, jets, heads, rows[1])
            of_queries = of_queries.without((keys.sizes == 0).index_select(0, queries.owner), heads)
        sizes = torch.nn.functional.pad(keys.host_sizes, (0, len(spare)))[jets]
        lengths = zip(sizes, of_queries.lengths, of_keys.lengths, strict=True)
        biases = [
            _bias(size, n, m, causal, heads).to(keys.device, dtype) if n and m else None
            for size, n, m in lengths
        ]
        return cls(of_queries, of_keys, biases)


def _bias(
    sizes: Int[Tensor, " jets"], queries: int, keys: int, causal: bool, heads: int
) -> Float[Tensor, "_ N M"]:
    place = torch.arange(keys)
    seen = (place < sizes[:, None])[:, None, :]  # the same for all queries
    if causal:
        seen = seen & (place <= torch.arange(queries)[:, None])
    bias = torch.where(seen, 0.0, -3e4)  # finite in half precision: jets may have no keys at all
    return bias.repeat_interleave(heads, dim=0)


def _rounded(length: int) -> int:
    return length if length <= 1 else -(-length // STEP) * STEP


class _Attention(Function):
    """Scores, softmax and mean of each box; the derivatives are those of the textbook."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, boxes: Boxes) -> Tensor:
        ctx.boxes, queries, keys = boxes, boxes.queries, boxes.keys
        filled = queries.fill(q), keys.fill(k), keys.fill(v)
        out, scale = queries.empty(q), q.shape[-1] ** -0.5
        views = (side.views(x) for side, x in zip((queries, keys, keys), filled, strict=True))
        weights = []
        with torch.autocast(q.device.type, enabled=False):
            for to, bias, *given in zip(queries.views(out), boxes.biases, *views, strict=True):
                if bias is None:
                    to.zero_()
                    continue
                box_q, box_k, box_v = given
                logits = torch.baddbmm(bias, box_q, box_k.transpose(1, 2), alpha=scale)
                weights.append(logits.softmax(-1))
                torch.bmm(weights[-1], box_v, out=to)
        ctx.save_for_backward(*filled, *weights)
        return queries.read(out, q.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        queries, keys, scale = ctx.boxes.queries, ctx.boxes.keys, grad.shape[-1] ** -0.5
        q, k, v, *saved = ctx.saved_tensors
        filled, weights = [q, k, v], iter(saved)
        sides = queries, keys, keys
        found = [side.empty(x) for side, x in zip(sides, filled, strict=True)]
        views = [side.views(x) for side, x in zip(sides * 2, filled + found, strict=True)]
        above = queries.views(queries.fill_with_zeros(grad))
        for bias, box_grad, *parts in zip(ctx.boxes.biases, above, *views, strict=True):
            box_q, box_k, box_v, to_q, to_k, to_v = parts
            if bias is None:
                for to in (to_q, to_k, to_v):
                    to.zero_()
                continue
            weight = next(weights)
            torch.bmm(weight.transpose(1, 2), box_grad, out=to_v)
            of_weight = torch.bmm(box_grad, box_v.transpose(1, 2))
            of_logits = _softmax_backward(of_weight, weight, -1, weight.dtype)
            torch.baddbmm(to_q, of_logits, box_k, beta=0, alpha=scale, out=to_q)
            torch.baddbmm(to_k, of_logits.transpose(1, 2), box_q, beta=0, alpha=scale, out=to_k)
        of_q, of_k, of_v = (
            side.read(x, grad.shape[1]) for side, x in zip(sides, found, strict=True)
        )
        return of_q, of_k, of_v, None
