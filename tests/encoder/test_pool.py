"""The attention pool: one vector per jet, of its own tokens and in no order."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from reference.jets import SIZES, random_batch, randomise, tiny_encoder

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.encoder import Encoded
from jetssl_cli.encoder.pool import PoolConfig

WIDTH = 16


def tokens_of(sizes, seed=0):
    packing = Packing.of(torch.tensor(sizes, dtype=torch.int64))
    tokens = torch.randn(packing.total, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Encoded(tokens, packing, torch.arange(packing.total))


@pytest.fixture(scope="module")
def pool():
    config = PoolConfig(width=8, heads=2)
    return randomise(config.build(WIDTH, 10)).eval()


@torch.no_grad()
def test_a_jet_is_read_from_its_own_tokens(pool):
    encoded = tokens_of(SIZES)
    before = pool(encoded)
    assert before.shape == (len(SIZES), 10)
    for jet, size in enumerate(SIZES):
        encoded.tokens[encoded.packing.owner == jet] += 1
        after = pool(encoded)
        changed = (after != before).any(1)
        assert changed.tolist() == [size > 0 and jet == other for other in range(len(SIZES))]
        before = after


@torch.no_grad()
def test_a_jet_alone_is_the_same(pool):
    encoded = tokens_of(SIZES)
    together = pool(encoded)
    for jet, size in enumerate(SIZES):
        mine = encoded.tokens[encoded.packing.owner == jet]
        alone = pool(Encoded(mine, Packing.of(torch.tensor([size])), torch.arange(size)))
        torch.testing.assert_close(alone[0], together[jet], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter(pool):
    encoded = tokens_of(SIZES)
    keys = torch.rand(encoded.packing.total, generator=torch.Generator().manual_seed(5))
    order = (encoded.packing.owner + keys).argsort()
    shuffled = Encoded(encoded.tokens[order], encoded.packing, encoded.constituent_rows)
    torch.testing.assert_close(pool(shuffled), pool(encoded), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[0, 3, 0], [0, 0]])
def test_jets_without_any_token(pool, sizes):
    """No constituents and no registers: the answer is that of an empty jet, and finite."""
    encoder = tiny_encoder(registers=0)
    found = pool(encoder(random_batch(sizes)))
    assert found.isfinite().all()
    empty = found[[i for i, size in enumerate(sizes) if not size]]
    assert torch.equal(empty, empty[:1].expand_as(empty))
    found.sum().backward()
    parameters = [*pool.parameters(), *encoder.parameters()]
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    pool = randomise(PoolConfig(width=8, heads=2, dropout=0.5).build(WIDTH, 10))
    encoded = tokens_of(SIZES)
    assert not torch.equal(pool.train()(encoded), pool(encoded))
    assert torch.equal(pool.eval()(encoded), pool(encoded))


def test_heads_have_to_divide_the_width():
    with pytest.raises(ValidationError, match="width 100 is not a multiple of heads 3"):
        PoolConfig(width=100, heads=3)
