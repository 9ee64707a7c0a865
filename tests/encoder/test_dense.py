"""Padded jets through the modules are packed jets through them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.jets import SIZES, random_batch, randomise, tiny_encoder

from jetssl_cli.encoder import dense
from jetssl_cli.encoder.attention import plan
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.runs.probe import jet_vectors

KINDS = ({}, {"causal": True}, {"context": False}, {"registers": 0})
IDS = ("plain", "causal", "no context", "no registers")
ENCODERS = [tiny_encoder(**kind).eval() for kind in KINDS]
HEAD = randomise(PoolConfig(width=8, heads=2).build(16, 10)).eval()


def close(one, other):
    """To a hundred thousandth of the largest: where terms cancel, rounding is not smaller."""
    largest = max([1.0, *other.abs().flatten().tolist()])
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * largest)


def padded(encoder, batch, length):
    scaled = encoder.scale(batch)
    mask, lay = dense.boxes(scaled.packing, length)
    return [lay(scaled.features), lay(scaled.ids), mask, scaled.jets]


@pytest.mark.parametrize("encoder", ENCODERS, ids=IDS)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=8), more=st.integers(0, 9), seed=...)
@settings(max_examples=15)
@torch.inference_mode()
def test_dense_is_packed(encoder, sizes: list[int], more: int, seed: bool):
    """Vectors, their means, and what a pool makes of them; jets of none, one and many."""
    batch = random_batch(sizes, int(seed))
    wanted = encoder(batch)
    tokens, real = dense.encode(encoder, *padded(encoder, batch, max(*sizes, 1) + more))
    close(tokens[real], wanted.tokens)
    close(dense.mean(tokens, real), jet_vectors(wanted))
    close(dense.pool(HEAD, tokens, real), HEAD(wanted))


@torch.inference_mode()
def test_what_is_no_constituent_does_not_matter():
    encoder, batch = ENCODERS[0], random_batch(SIZES)
    features, ids, mask, jets = padded(encoder, batch, 15)
    before = dense.pool(HEAD, *dense.encode(encoder, features, ids, mask, jets))
    features = torch.where(mask[..., None], features, 1e3)
    ids = torch.where(mask, ids, 7)
    after = dense.pool(HEAD, *dense.encode(encoder, features, ids, mask, jets))
    close(before, after)
    features[3, 2] += 1  # of the jet with seven constituents
    changed = dense.pool(HEAD, *dense.encode(encoder, features, ids, mask, jets)) != after
    assert changed.any(1).tolist() == [jet == 3 for jet in range(len(SIZES))]


@torch.inference_mode()
def test_constituents_may_stand_anywhere():
    encoder, batch = ENCODERS[0], random_batch([4, 2])
    inputs = padded(encoder, batch, 6)
    order = torch.tensor([5, 1, 4, 0, 2, 3])
    moved = [x[:, order] if x.shape[1] == 6 else x for x in inputs]
    outputs = [dense.pool(HEAD, *dense.encode(encoder, *given)) for given in (inputs, moved)]
    close(*outputs)


def test_the_last_layer_of_a_pool_stays_in_single_precision():
    """Half precision has 8 bits: scores near 1 would be tied."""
    encoded = ENCODERS[0](random_batch(range(60)))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outputs = HEAD(encoded)
    assert outputs.dtype == torch.float32
    assert (outputs != outputs.bfloat16().float()).float().mean() > 0.9


def test_attention_needs_no_keys():
    """Without any, the softmax is over nothing; ``pool`` makes it zero, and it is finite before."""
    q = torch.randn(2, 3, 2, 4)
    out = dense.plan(torch.zeros(2, 3, dtype=torch.bool))(q, q, q)
    assert out.isfinite().all()
    packing = random_batch([3, 3]).packing
    wanted = plan(packing)(*[q.flatten(0, 1)] * 3)
    close(dense.plan(torch.ones(2, 3, dtype=torch.bool))(q, q, q).flatten(0, 1), wanted)
