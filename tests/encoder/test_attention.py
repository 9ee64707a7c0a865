"""Attention within jets: every back end against the definition."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetssl_cli.batch import STRAYS, Packing
from jetssl_cli.encoder import attention, padded
from jetssl_cli.encoder.attention import plan
from jetssl_cli.encoder.functions import rms_norm
from jetssl_cli.encoder.padded import JETS_PER_BOX, Boxes
from jetssl_cli.errors import ConfigError

HEADS, HEAD_WIDTH = 2, 4

sizes_of_jets = st.lists(st.integers(0, 9), max_size=12)


def pack(sizes):
    return Packing.of(torch.tensor(sizes, dtype=torch.int64))


def vectors(total, seed, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(total, HEADS, HEAD_WIDTH, generator=rng, dtype=dtype).requires_grad_()


def values_and_gradients(backend, queries, keys, causal=False, seed=0):
    """The output and the gradients of a random projection of it to q, k and v."""
    q = vectors(queries.total, seed)
    k, v = (vectors((keys or queries).total, seed + n) for n in (1, 2))
    out = plan(queries, keys, causal=causal, backend=backend)(q, k, v)
    if out.requires_grad:
        (out * vectors(queries.total, seed + 3).detach()).sum().backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (q, k, v)]
    return [out.detach(), *grads]


def dense(q, k, v, causal=False):
    """softmax(q k^T / sqrt(K)) v for one jet, one query and one head at a time."""
    out = torch.zeros(len(q), HEADS, HEAD_WIDTH)
    for head in range(HEADS):
        for i in range(len(q)):
            stop = i + 1 if causal else len(k)
            if stop:
                weights = (k[:stop, head] @ q[i, head] / HEAD_WIDTH**0.5).softmax(0)
                out[i, head] = weights @ v[:stop, head]
    return out


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_is_the_definition(causal):
    packing = pack([3, 0, 1, 6])
    q, k, v = (vectors(packing.total, seed).detach() for seed in range(3))
    out = plan(packing, causal=causal, backend="reference")(q, k, v)
    bounds = packing.offsets.tolist()
    wanted = [dense(q[a:b], k[a:b], v[a:b], causal) for a, b in pairwise(bounds)]
    torch.testing.assert_close(out, torch.cat(wanted))


@given(sizes=sizes_of_jets, causal=st.booleans())
@settings(max_examples=60)
def test_padded_self_attention_is_the_reference(sizes, causal):
    queries = pack(sizes)
    same(
        values_and_gradients("padded", queries, None, causal),
        values_and_gradients("reference", queries, None, causal),
    )


@given(sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
@settings(max_examples=60)
def test_padded_cross_attention_is_the_reference(sizes):
    """Some jets have no keys, some no queries, some neither."""
    queries, keys = pack([size for size, _ in sizes]), pack([size for _, size in sizes])
    same(
        values_and_gradients("padded", queries, keys),
        values_and_gradients("reference", queries, keys),
    )


@pytest.mark.parametrize(("queries", "keys"), [([0, 0], [3, 1]), ([2, 1], [0, 0]), ([0], [0])])
def test_where_a_side_is_empty_attention_is_zero(monkeypatch, queries, keys):
    """What the kernels of a GPU, which need both sides, are spared."""
    sides = pack(queries), pack(keys)
    wanted = values_and_gradients("reference", *sides)
    monkeypatch.setattr(attention, "_take_newest_flash", lambda: None)
    same(values_and_gradients("varlen", *sides), wanted)


def test_a_slot_without_a_token_holds_its_own_head_of_its_own_jet():
    sizes, heads = [3, 17, 1, 0, 20], 3
    packing = pack(sizes)
    side = Boxes.of(
        packing, packing, causal=False, heads=heads, rows=(41, 41), dtype=torch.float32
    ).keys
    numbers = torch.arange(41.0 * heads).view(41, heads, 1)
    for box in side.views(side.fill(numbers)):
        row, head = box[..., 0].long() // heads, box[..., 0].long() % heads
        assert (head == torch.arange(side.stacked)[:, None] % heads).all()
        jets = packing.owner[row]
        assert (jets == jets[:, :1]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_long_jet_does_not_fill_the_memory(monkeypatch, causal):
    sizes = [200, 3, 0, 7, 5]
    monkeypatch.setattr(padded, "MOST_LOGITS", 2 * 200**2)
    packing, most = pack(sizes), HEADS * 2 * 208**2
    boxes = Boxes.of(
        packing, packing, causal=causal, heads=HEADS, rows=(215, 215), dtype=torch.float32
    )
    assert max(boxes.keys.stacked * n**2 for n in boxes.keys.lengths) <= most
    same(
        values_and_gradients("padded", packing, None, causal),
        values_and_gradients("reference", packing, None, causal),
    )


@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_half_precision_is_the_reference_in_single(kind):
    rng = torch.Generator().manual_seed(0)
    queries, others = (Packing.of(torch.randint(0, 40, (70,), generator=rng)) for _ in range(2))
    keys = others if kind == "cross" else None
    totals = [queries.total, *2 * [(keys or queries).total]]
    start = [torch.randn(n, 2, 16, generator=rng).bfloat16() for n in totals]
    project = torch.randn(queries.total, 2, 16, generator=rng).bfloat16()
    found = []
    for backend, dtype in (("reference", torch.float32), ("padded", torch.bfloat16)):
        inputs = [x.to(dtype).requires_grad_() for x in start]
        out = plan(queries, keys, causal=kind == "causal", backend=backend)(*inputs)
        (out * project.to(dtype)).sum().backward()
        found.append([out.detach().float(), *(x.grad.float() for x in inputs)])
    for wanted, other in zip(*found, strict=True):
        size = wanted.square().mean().sqrt()
        assert (other - wanted).square().mean().sqrt() < 1e-2 * size
        torch.testing.assert_close(other / size, wanted / size, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_rows_behind_the_tokens_change_nothing(kind):
    """The tensors of a network may have more rows than tokens: those give zero and get zero."""
    queries = pack([3, 0, 5, 2])
    keys = pack([1, 4, 0, 2]) if kind == "cross" else None
    wanted = values_and_gradients("padded", queries, keys)
    attend = plan(queries, keys, backend="padded")
    q = vectors(queries.total, 0)
    k, v = (vectors((keys or queries).total, n) for n in (1, 2))
    rest = torch.full((4, HEADS, HEAD_WIDTH), 7.0)
    out = attend(*(torch.cat([x, rest]) for x in (q, k, v)))
    assert (out[queries.total :] == 0).all()
    project = torch.cat([vectors(queries.total, 3).detach(), rest])
    (out * project).sum().backward()
    same([out[: queries.total].detach(), q.grad, k.grad, v.grad], wanted)


@pytest.mark.parametrize("backend", ["padded", "reference"])
@pytest.mark.parametrize("sizes", [[0], [0, 0, 0], [0] * (JETS_PER_BOX + 1)])
def test_a_batch_without_tokens(backend, sizes):
    for out in values_and_gradients(backend, pack(sizes), None):
        assert out.shape == (0, HEADS, HEAD_WIDTH)


@pytest.mark.parametrize("backend", ["padded", "reference"])
def test_a_query_whose_jet_has_no_keys_gets_zero(backend):
    queries, keys = pack([2, 3, 1]), pack([4, 0, 2])
    out, *grads = values_and_gradients(backend, queries, keys)
    assert (out[2:5] == 0).all()
    assert (out[:2] != 0).all()
    assert (out[5:] != 0).all()
    assert all(grad.isfinite().all() for grad in grads)
    out, *_ = values_and_gradients(backend, queries, pack([0, 0, 0]))
    assert (out == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [-1, 0, 1, JETS_PER_BOX + 5])
def test_more_jets_than_a_bucket_holds(extra, causal):
    rng = torch.Generator().manual_seed(extra + 10)
    sizes = torch.randint(0, 6, (JETS_PER_BOX + extra,), generator=rng)
    packing = Packing.of(sizes)
    same(
        values_and_gradients("padded", packing, None, causal),
        values_and_gradients("reference", packing, None, causal),
    )


@pytest.mark.parametrize("backend", ["padded", "reference"])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_crosses_from_jet_to_jet(backend, causal):
    """Whatever the other jets hold, infinity included, a jet's output is the same."""
    packing = pack([4, 1, 5, 3])
    q, k, v = (vectors(packing.total, seed).detach() for seed in range(3))
    attend = plan(packing, causal=causal, backend=backend)
    before = attend(q, k, v)
    other = packing.owner != 2
    for x in (q, k, v):
        x[other] += 100 * torch.randn(x[other].shape, generator=torch.Generator().manual_seed(9))
    after = attend(q, k, v)
    assert torch.equal(before[~other], after[~other])
    assert (before[other] != after[other]).any()


@pytest.mark.parametrize("backend", ["padded", "reference"])
def test_causal_tokens_do_not_see_later_ones(backend):
    packing = pack([5, 4])
    q, k, v = (vectors(packing.total, seed).detach() for seed in range(3))
    attend = plan(packing, causal=True, backend=backend)
    before = attend(q, k, v)
    k[2] += 1
    v[2] += 1
    changed = (attend(q, k, v) != before).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True, True, False, False, False, False]


def test_causal_attention_is_self_attention():
    with pytest.raises(AssertionError, match="self-attention"):
        plan(pack([2]), pack([2]), causal=True)


def test_the_cpu_takes_the_padded_path():
    assert attention._best(pack([3, 1])) == "padded"


def test_double_precision_stays_double():
    packing = pack([3, 1])
    q, k, v = (vectors(packing.total, seed, torch.float64).detach() for seed in range(3))
    padded, wanted = (plan(packing, backend=b)(q, k, v) for b in ("padded", "reference"))
    assert padded.dtype == torch.float64
    torch.testing.assert_close(padded, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_any_width_are_filled_up_for_varlen(monkeypatch, causal):
    """A kernel that takes multiples of 8 alone, as PyTorch's does."""
    queries = pack([3, 0, 1, 7])

    def kernel(q, k, v, q_bounds, k_bounds, longest, of_keys, *, scale, window_size=(-1, -1)):
        assert q.shape[-1] % 8 == 0
        assert (longest, of_keys) == (16, 16)
        assert q_bounds.tolist() == k_bounds.tolist() == [0, 3, 3, 4, 11] + [11] * STRAYS
        whole = plan(queries, causal=window_size == (-1, 0), backend="reference")
        return whole(q * (scale * q.shape[-1] ** 0.5), k, v)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(attention, "_take_newest_flash", lambda: None)
    found = values_and_gradients("varlen", queries, None, causal)
    wanted = values_and_gradients("reference", queries, None, causal)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_flash_attention_4_alone_is_not_version_2(tmp_path, monkeypatch):
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attention, "has_flash_attention", lambda: True)
    attention._has_flash_attn.cache_clear()
    try:
        with pytest.raises(ConfigError, match="the package flash-attn is missing"):
            attention.require("flash-attn")
    finally:
        attention._has_flash_attn.cache_clear()


def test_every_row_has_a_jet_for_kernels():
    """Rows behind the tokens make short jets of their own, as many in any batch."""
    for sizes in ([], [0], [3, 0, 1], [40, 30, 0, 12], [129] * 40, [1] * 3000):
        packing = pack(sizes)
        bounds = packing.bounds
        assert bounds.dtype == torch.int32
        assert bounds.tolist()[: len(sizes) + 1] == packing.offsets.tolist()
        assert len(bounds) == len(sizes) + 1 + STRAYS
        assert bounds[-1] == packing.rows
        assert (bounds.diff() >= 0).all()
        assert bounds.diff().max() <= packing.tile
        assert packing.tile in (16, 32, 64, 128, 256)
        assert packing.tile // 2 < max(packing.longest, 9)
    exact = Packing(torch.arange(1002), exact=True)
    assert (exact.rows, pack([1] * 1001).rows) == (1001, 1024)
    assert exact.bounds.tolist() == [*range(1002), *[1001] * STRAYS]


@pytest.mark.parametrize(("kib", "most"), [(228, 256), (164, 256), (100, 128)])
def test_jets_too_long_for_a_tile_are_left_to_varlen(monkeypatch, kib, most):
    gpu = SimpleNamespace(shared_memory_per_multiprocessor=kib * 2**10)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(attention, "varlen", lambda *_: max)
    monkeypatch.setitem(sys.modules, "jetssl_cli.encoder.tiles", ModuleType("tiles"))
    attention._most_keys.cache_clear()
    try:
        short, long = pack([3, most]), pack([3, most + 1])
        assert attention.triton(short, long, False) is max
        plan = attention.triton(long, short, False)
        assert (plan.q_tile, plan.k_tile) == (2 * most, most)
    finally:
        attention._most_keys.cache_clear()


GPU_BACKENDS = ["triton", "varlen", "flash-attn", "padded"]
GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)


@pytest.mark.parametrize("backend", [pytest.param(b, marks=GPU) for b in GPU_BACKENDS])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
@pytest.mark.parametrize(("width", "longest"), [(20, 9), (64, 70), (128, 70), (64, 200), (64, 300)])
def test_gpu_back_ends_are_the_reference(backend, kind, width, longest):
    """In bfloat16 against float32, values and gradients; jets without tokens or keys included.

    Rows behind the tokens get numbers too, not whatever lies in memory.
    """
    if backend == "flash-attn":
        pytest.importorskip("flash_attn")
    device = torch.device("cuda")
    queries = pack([3, 0, 1, longest, 5, 40, 33]).to(device)
    keys = pack([4, 2, 0, 1, longest - 1, 20, 64]).to(device) if kind == "cross" else None
    rng = torch.Generator(device).manual_seed(0)
    rows = [queries.rows, *2 * [(keys or queries).rows]]
    start = [torch.randn(n, 2, width, generator=rng, device=device) for n in rows]
    project = torch.randn(queries.rows, 2, width, generator=rng, device=device)
    project[queries.total :] = 0
    project = project.bfloat16()  # of one key it is summed over hundreds of queries
    found = []
    for name, dtype in (("reference", torch.float32), (backend, torch.bfloat16)):
        inputs = [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in start]
        out = plan(queries, keys, causal=kind == "causal", backend=name)(*inputs)
        assert out.isfinite().all()
        (out * project.to(dtype)).sum().backward()
        found.append([out[: queries.total].detach().float(), *(x.grad.float() for x in inputs)])
    for wanted, other in zip(*found, strict=True):
        torch.testing.assert_close(other, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=GPU) for k in ("self", "causal", "cross")])
@pytest.mark.parametrize("width", [20, 32, 64])
def test_kernels_normalise_queries_and_keys(kind, width):
    device = torch.device("cuda")
    queries = pack([3, 0, 1, 70, 5, 40, 33]).to(device)
    keys = pack([4, 2, 0, 1, 90, 20, 64]).to(device) if kind == "cross" else queries
    rng = torch.Generator(device).manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=rng, device=device)

    start = [draw(queries.rows, 3, 2, width)]
    if kind == "cross":
        start = [draw(queries.rows, 1, 2, width), draw(keys.rows, 2, 2, width)]
    start = [x.bfloat16() for x in start]
    weights = [1 + 0.3 * draw(width) for _ in range(2)]
    above = draw(queries.rows, 2, width).bfloat16()
    above[queries.total :] = 0
    others, causal, found = keys if kind == "cross" else None, kind == "causal", []
    for dtype in (torch.float32, torch.bfloat16):
        parts = [x.to(dtype, copy=True).requires_grad_() for x in start]
        of_norms = [x.clone().requires_grad_() for x in weights]
        if dtype == torch.bfloat16:
            attend = plan(queries, others, causal=causal, backend="triton")
            out = attend.normed(parts, tuple(of_norms), 1e-6)
        else:
            q, k, v = (x for part in parts for x in part.unbind(1))
            q, k = (rms_norm(x, w) for x, w in zip((q, k), of_norms, strict=True))
            out = plan(queries, others, causal=causal, backend="reference")(q, k, v)
        (out * above.to(dtype)).sum().backward()
        found.append([out[: queries.total].detach().float()])
        found[-1] += [x.grad.float() for x in (*parts, *of_norms)]
    for wanted, other in zip(*found, strict=True):
        size = wanted.square().mean().sqrt()
        torch.testing.assert_close(other / size, wanted / size, rtol=2e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_of_a_gpu_are_taken_in_half_precision_alone():
    short, long = (pack([3, most]).to(torch.device("cuda")) for most in (200, 300))
    assert attention._best(short) == "padded"
    with torch.autocast("cuda", torch.bfloat16):
        assert attention._best(short) == "triton"
        assert attention._best(long) in ("varlen", "flash-attn")
