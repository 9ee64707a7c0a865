"""The encoder, always with weights in which no gate is shut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.jets import (
    SIZES,
    assert_equal_gradients,
    gradients,
    random_batch,
    random_scaling,
    randomise,
    schema,
    take,
    tiny_config,
    tiny_encoder,
)
from torch.nn.functional import silu

from jetssl_cli.batch import JetBatch, Owners
from jetssl_cli.encoder.attention import Tiled, plan
from jetssl_cli.encoder.blocks import Blocks, Recordable
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.encoder.transformer import CrossAttention, SelfAttention, ZeroLinear, fourier

REGISTERS = 3


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def of_jet(encoded, jet):
    start, stop = encoded.packing.offsets[jet : jet + 2].tolist()
    return encoded.tokens[start:stop]


def owners(packing):
    return Owners(packing.owner, packing.bounds)


@pytest.fixture(scope="module", params=[True, False], ids=["context", "no context"])
def encoder(request):
    return tiny_encoder(context=request.param).eval()


@torch.no_grad()
def test_a_jet_alone_is_the_same_jet_in_any_batch(encoder):
    batch = random_batch(SIZES)
    together = encoder(batch)
    for jet in range(len(SIZES)):
        alone = encoder(take(batch, [jet]))
        close(of_jet(together, jet), alone.tokens)


@given(order=st.permutations(range(len(SIZES))))
@settings(max_examples=10)
@torch.no_grad()
def test_permuting_the_jets_permutes_the_outputs(order):
    encoder, batch = tiny_encoder(), random_batch(SIZES)
    straight, permuted = encoder(batch), encoder(take(batch, order))
    for place, jet in enumerate(order):
        close(of_jet(permuted, place), of_jet(straight, jet))


@torch.no_grad()
def test_a_jet_is_a_set(encoder):
    """Permuted constituents give permuted vectors, and the registers do not notice."""
    batch = random_batch(SIZES)
    keys = torch.rand(batch.packing.total, generator=torch.Generator().manual_seed(5))
    order = (batch.packing.owner + keys).argsort()
    assert (order != torch.arange(len(order))).any()
    shuffled = JetBatch(
        batch.features[order], batch.ids[order], batch.jets, batch.packing, batch.labels
    )
    straight, permuted = encoder(batch), encoder(shuffled)
    close(permuted.constituents, straight.constituents[order])
    registers = straight.packing.rank < REGISTERS
    close(permuted.tokens[registers], straight.tokens[registers])


@torch.no_grad()
def test_every_constituent_matters_to_its_jet_and_to_no_other(encoder):
    batch = random_batch(SIZES)
    before = encoder(batch)
    row = int(batch.packing.offsets[3])  # of the jet with seven constituents
    batch.features[row] += 1
    changed = (encoder(batch).tokens != before.tokens).any(1)
    own = before.packing.owner == 3
    assert changed[own].all()
    assert not changed[~own].any()


def test_padded_is_reference_through_the_whole_encoder():
    batch = random_batch([*SIZES, *range(40)])
    found = []
    for backend in ("padded", "reference"):
        encoder = tiny_encoder(attention=backend)
        found.append(gradients(encoder, lambda e=encoder: e(batch).tokens))
    close(found[0][0], found[1][0])
    assert_equal_gradients(found[0][1], found[1][1])
    assert all((gradient != 0).any() for gradient in found[1][1].values())


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, REGISTERS])
@pytest.mark.parametrize("sizes", [[0], [0, 0], [1], [0, 4, 0]])
def test_jets_without_constituents(registers, sizes):
    encoded = tiny_encoder(registers=registers)(random_batch(sizes))
    assert encoded.packing.sizes.tolist() == [size + registers for size in sizes]
    assert encoded.tokens.shape == (sum(sizes) + registers * len(sizes), 16)
    assert encoded.tokens.isfinite().all()
    assert len(encoded.constituents) == sum(sizes)


def test_registers_come_first():
    encoder, batch = tiny_encoder(), random_batch(SIZES)
    packing, rows, given = encoder._prepared(batch)
    x, *_ = encoder._embedded(*given)
    assert rows.tolist() == (packing.rank >= REGISTERS).nonzero()[:, 0].tolist()
    assert torch.equal(x[rows], encoder.embed(batch.features) + encoder.embed_id(batch.ids))
    assert len(x) == packing.rows
    assert (x[packing.total :] == 0).all()
    for jet in range(len(SIZES)):
        start = int(packing.offsets[jet])
        assert torch.equal(x[start : start + REGISTERS], encoder.registers)


@torch.no_grad()
def test_physical_features_are_scaled_inside(encoder):
    batch = random_batch(SIZES)
    scaled = encoder.scale(batch)
    assert not torch.equal(scaled.features, batch.features)
    assert torch.equal(encoder(batch).tokens, encoder.encode(scaled).tokens)
    assert not torch.allclose(encoder(batch).tokens, encoder.encode(batch).tokens)


def test_the_scaling_is_saved_with_the_encoder():
    names = tiny_encoder().state_dict().keys()
    assert {"scaling.constituents.quantiles", "scaling.jets.quantiles"} <= names


@torch.no_grad()
def test_jet_features_modulate_only_with_a_context():
    batch = random_batch(SIZES)
    changed = JetBatch(batch.features, batch.ids, batch.jets + 1, batch.packing, batch.labels)
    with_context, without = tiny_encoder(context=True), tiny_encoder(context=False)
    differs = (with_context(changed).tokens != with_context(batch).tokens).any(1)
    assert differs.all()
    assert torch.equal(without(changed).tokens, without(batch).tokens)
    assert not any("embed_jet" in name or "modulation" in name for name in without.state_dict())


@pytest.mark.parametrize("context", [True, False])
def test_no_jets_have_no_vectors_and_gradients_of_zero(context):
    encoder = tiny_encoder(context=context)
    tokens = encoder(random_batch(SIZES).first(0)).tokens
    assert tokens.shape == (0, encoder.width)
    tokens.sum().backward()
    assert all((p.grad == 0).all() for p in encoder.parameters() if p.grad is not None)


@torch.no_grad()
def test_at_initialisation_the_blocks_are_the_identity():
    torch.manual_seed(0)
    encoder = tiny_config().build(random_scaling(), 7, 8, 5)
    packing = random_batch(SIZES).packing
    x = torch.randn(packing.total, 16)
    context = torch.randn(len(SIZES), 8), owners(packing)
    modulations = encoder.blocks.modulations(*context, x.dtype)
    for layer in encoder.blocks.layers(x, modulations, plan(packing)):
        assert torch.equal(layer, x)
    cross = Blocks(1, 16, 2, 8, memory_width=4)
    memory, attend = torch.randn(packing.total, 4), plan(packing)
    modulations = cross.modulations(*context, x.dtype)
    assert torch.equal(cross(x, modulations, attend, attend, memory), x)
    randomise(cross)
    modulations = cross.modulations(*context, x.dtype)
    assert not torch.allclose(cross(x, modulations, attend, attend, memory), x)


def test_gates_open_from_zero():
    """At the start the gates have gradients, though what lies behind them has none."""
    torch.manual_seed(0)
    encoder = tiny_config().build(random_scaling(), 7, 8, 5)
    encoder(random_batch(SIZES)).tokens.square().sum().backward()
    for module in encoder.modules():
        if isinstance(module, ZeroLinear):
            assert (module.weight == 0).all()
            scale, shift, gate = module.weight.grad.chunk(3)
            assert (scale == 0).all()
            assert (shift == 0).all()
            assert (gate != 0).any()


@torch.no_grad()
@pytest.mark.parametrize(("part", "normalised"), [("q", True), ("k", True), ("v", False)])
@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_queries_and_keys_are_normalised_and_values_are_not(kind, part, normalised):
    """Seen through one of two heads: the norm behind hides a factor common to all values."""
    packing = random_batch(SIZES).packing
    width, heads = 8, 2
    x, memory = torch.randn(2, packing.total, width, generator=torch.Generator().manual_seed(0))
    if kind is SelfAttention:
        layer = randomise(SelfAttention(width, heads))
        linear, start = layer.qkv, "qkv".index(part) * width
        inputs = (x, plan(packing))
    else:
        layer = randomise(CrossAttention(width, heads, width))
        linear, start = (layer.q, 0) if part == "q" else (layer.kv, "kv".index(part) * width)
        inputs = (x, plan(packing), memory)
    before = layer(*inputs)
    linear.weight[start : start + width // heads] *= 10
    linear.bias[start : start + width // heads] *= 10
    unchanged = torch.isclose(layer(*inputs), before, rtol=1e-3, atol=1e-4).all(1)
    assert unchanged.all() if normalised else not unchanged.any()


def test_a_branch_is_its_equation():
    """x + gate * layer(norm(x) * (1 + scale) + shift), with (scale, shift, gate) of the jet."""
    packing = random_batch(SIZES).packing
    blocks = randomise(Blocks(1, 16, 2, 8))
    branch = blocks[0].feed_forward
    x = torch.randn(packing.total, 16, generator=torch.Generator().manual_seed(0))
    context = torch.randn(len(SIZES), 8, generator=torch.Generator().manual_seed(1))
    modulations = blocks.modulations(silu(context), owners(packing), x.dtype)
    _, of_branch = modulations.of_branches()
    found = branch(x, of_branch)
    for row, jet in enumerate(packing.owner.tolist()):
        vector = context[jet] * context[jet].sigmoid()
        scale, shift, gate = (branch.modulation.weight @ vector + branch.modulation.bias).view(
            3, 16
        )
        normed = x[row] / (x[row].square().mean() + 1e-6).sqrt() * branch.norm.weight
        close(found[row], x[row] + gate * branch.layer((normed * (1 + scale) + shift)[None])[0])


def test_recomputing_changes_neither_values_nor_gradients():
    batch, found = random_batch(SIZES), []
    for recompute in (False, True):
        encoder = tiny_encoder(recompute=recompute)
        found.append(gradients(encoder, lambda e=encoder: e(batch).tokens))
    (value, grads), (same_value, same_grads) = found
    assert torch.equal(value, same_value)
    assert_equal_gradients(grads, same_grads)


def test_half_precision_comes_close_to_single():
    batch = random_batch([3, 0, 12, 1, 40])
    encoder = randomise(tiny_config(width=32).build(random_scaling(), 7, 8, 5), scale=0.1)
    wanted = encoder(batch).tokens
    with torch.autocast("cpu", torch.bfloat16):
        encoded = encoder(batch)
    assert encoded.rows.dtype == torch.bfloat16
    error = (encoded.tokens.float() - wanted).square().mean().sqrt()
    assert error < 2e-2 * wanted.square().mean().sqrt()


@pytest.mark.slow
def test_compiled_blocks_are_the_blocks(printed_by):
    """torch.compile cannot look through the checks of annotations."""
    assert printed_by("compiled.py") == "equal\n"


def test_networks_with_hidden_states_are_not_recorded():
    encoder = tiny_encoder()
    assert encoder.has_no_state()
    encoder.blocks[1].feed_forward.dropout.p = 0.1
    assert not encoder.has_no_state()
    assert encoder.eval().has_no_state()
    assert not tiny_encoder(recompute=True).has_no_state()


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


@pytest.mark.usefixtures("unchecked")
def test_plans_in_a_closure_are_not_recorded():
    packing = random_batch(SIZES).packing
    tiled = Tiled(packing.bounds, packing.bounds, packing.tile, packing.tile, causal=False)
    network = Recordable()
    network.compute, network.graphs = (lambda *_: "computed"), (lambda *_: "from a graph")
    x = torch.ones(2).as_subclass(OnGPU)
    assert network.computed(x, packing.owners, (tiled, None)) == "from a graph"
    assert network.computed(x, packing.owners, (plan(packing), None)) == "computed"
    assert network.computed(torch.ones(2), tiled) == "computed"


def test_fourier_features():
    t = torch.tensor([0.1, 0.7])
    wanted = [[f(k * torch.pi * x) for f in (torch.cos, torch.sin) for k in (1, 2, 3)] for x in t]
    torch.testing.assert_close(fourier(t, 3), torch.tensor(wanted))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        EncoderConfig(width=10, heads=4)


def test_the_parts_fit_the_data():
    expected = schema()
    encoder = tiny_encoder()
    assert encoder.num_features == len(expected.constituents)
    assert encoder.num_ids == len(expected.ids)
    assert encoder.embed_id.weight.shape == (len(expected.ids), encoder.width)
