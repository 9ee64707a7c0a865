"""Graphs give what the function gives: here with stand-ins for CUDA, on a GPU with CUDA itself."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from jetssl_cli.encoder import graphs, weights
from jetssl_cli.encoder.graphs import MET_BEFORE, MOST_GRAPHS, Graphs
from jetssl_cli.errors import ConfigError


class Stream:
    def wait_stream(self, other):
        del other


class CPUGraph:
    """Computes again what a graph of CUDA would replay."""

    def replay(self):
        self.again()


ORIGINAL = graphs._Graph.__init__
pytestmark = pytest.mark.usefixtures("unchecked", "on_a_cpu")


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(graphs, "_side_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda _, **__: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CPUGraph)
    record = graphs._Graph.__init__

    def recorded(self, called, weights, args, inputs, pool):
        record(self, called, weights, args, inputs, pool)
        given = graphs.with_tensors(tuple(args), iter(self.inputs))
        everything = [*self.inputs, *called.parameters()]

        def forward():
            with torch.set_grad_enabled(self.learns):
                self.fresh = called(*given)
            self._out.copy_(self.fresh.detach())

        def backward():
            wanted = [x for x in everything if x.requires_grad]
            found = torch.autograd.grad(self.fresh, wanted, self._above, allow_unused=True)
            by_id = dict(zip(map(id, wanted), found, strict=True))
            for x, gradient in zip(everything, [*self.of_inputs, *self.of_weights], strict=True):
                if gradient is not None:
                    gradient.copy_(by_id[id(x)])

        self._forward.again, self._backward.again = forward, backward

    monkeypatch.setattr(graphs._Graph, "__init__", recorded)


@pytest.fixture(params=["alone", "among processes"])
def processes(request, monkeypatch):
    """Where others wait for gradients, they come by autograd, which tells them."""
    monkeypatch.setattr(graphs.dist, "is_initialized", lambda: request.param != "alone")
    return request.param


@dataclass(frozen=True)
class Chosen:
    rows: Tensor
    twice: bool


class Network(nn.Module):
    """With a weight that the function does not use; the gradient of another lies in columns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.turned = nn.Parameter(torch.randn(4, 4))
        self.one, self.two, self.unused = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(1, 1)

    def run(self, x, chosen, more=None):
        x = x @ self.turned.T.contiguous()
        x = self.two(self.one(x).tanh()).index_select(0, chosen.rows)
        return x * (2 if chosen.twice else 1) + (0 if more is None else more[0])


@pytest.fixture
def network():
    return Network()


def rows(seed, count=5):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


CHOSEN = Chosen(torch.tensor([0, 2, 1, 2]), twice=True)


def compared(network, loss):
    """Gradients of weights, and of a layer before, with and without graphs; and the graphs."""
    before, recorded = nn.Linear(4, 4), Graphs(network, network.run)
    parameters = [*before.parameters(), *network.parameters()]
    for step in range(MET_BEFORE + 3):
        found = []
        for run in (network.run, recorded):
            for p in parameters:
                p.grad = None
            loss(lambda x, *more, run=run: run(before(x), *more), step)
            found.append([None if p.grad is None else p.grad.clone() for p in parameters])
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.equal(one, other)
    return recorded


@pytest.mark.usefixtures("processes")
def test_gradients_are_those_of_the_function(network):
    def loss(run, step):
        run(rows(step), CHOSEN, (torch.tensor(float(step)),)).square().sum().backward()

    assert len(compared(network, loss)) == 1


@pytest.mark.usefixtures("processes")
def test_gradients_of_parts_of_a_batch_add_up(network):
    """The gradients of a graph lie where those of the part before lay."""

    def loss(run, step):
        for part in range(3):
            run(rows(10 * step + part), CHOSEN).square().sum().backward()

    assert len(compared(network, loss)) == 1


def test_only_among_processes_autograd_brings_the_gradients(network, processes):
    recorded, told = Graphs(network, network.run), []
    network.one.weight.register_post_accumulate_grad_hook(lambda _: told.append(len(recorded)))
    for step in range(MET_BEFORE + 2):
        recorded(rows(step), CHOSEN).sum().backward()
    assert told == [0] * MET_BEFORE + ([] if processes == "alone" else [1, 1])


def test_in_half_precision_all_weights_of_layers_are_cast_at_once(network, monkeypatch):
    copied = []
    copy_all = weights.copy_all
    monkeypatch.setattr(weights, "copy_all", lambda pairs: (copied.append(pairs), copy_all(pairs)))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = [network.run(rows(step), CHOSEN) for step in range(MET_BEFORE + 1)]
        recorded = Graphs(network, network.run)
        for step, one in enumerate(wanted):
            assert torch.equal(recorded(rows(step), CHOSEN), one)
    own, others = zip(*copied[1], strict=True)  # after nothing was put aside
    assert {x.dtype for x in own} == {torch.bfloat16}
    wanted = {p.data_ptr() for layer in (network.one, network.two) for p in layer.parameters()}
    assert wanted < {x.data_ptr() for x in others}
    assert network.turned.data_ptr() not in {x.data_ptr() for x in others}


@pytest.mark.usefixtures("processes")
def test_a_second_pass_forward_does_not_overwrite_what_the_first_needs(network):
    def loss(run, step):
        one, other = run(rows(step), CHOSEN), run(rows(step + 9), CHOSEN)
        (one.square().sum() + other.square().sum() * one.sum()).backward()

    assert len(compared(network, loss)) == 1


def test_as_long_as_a_pass_back_may_come_no_graph_is_run(network):
    """Graphs share their memory, in which lies what that pass needs: not one of other shapes."""
    recorded = Graphs(network, network.run)
    for step in range(MET_BEFORE + 1):
        for count in (5, 6):
            recorded(rows(step, count), CHOSEN)
        with torch.no_grad():
            recorded(rows(step), CHOSEN)
    assert len(recorded) == 3
    replayed = []
    for graph in recorded._known.values():
        graph._forward.replay = lambda: replayed.append(1)
    out = recorded(rows(7), CHOSEN)
    assert recorded.waiting
    recorded(rows(7, 6), CHOSEN)
    with torch.no_grad():
        recorded(rows(7), CHOSEN)
    assert len(replayed) == 1
    del out  # a loss that is left alone does not stop the graphs
    assert not recorded.waiting
    recorded(rows(7, 6), CHOSEN)
    assert len(replayed) == 2


def test_a_loss_may_outlive_its_pass_back_which_comes_once(network):
    recorded = Graphs(network, network.run)
    for step in range(MET_BEFORE + 2):
        out = recorded(rows(step), CHOSEN)
        out.sum().backward(retain_graph=True)
        assert not recorded.waiting
    assert len(recorded) == 1
    with pytest.raises(RuntimeError, match="goes back once"):
        out.sum().backward()


def test_what_a_graph_writes_to_and_reads_from_is_held(network, monkeypatch):
    """It knows addresses alone: memory that nobody holds is given to others."""
    made = []
    stand_ins = weights.Weights.stand_ins

    def watched(self):
        found = stand_ins(self)
        made.extend(weakref.ref(x) for x in found)
        return found

    monkeypatch.setattr(weights.Weights, "stand_ins", watched)
    monkeypatch.setattr(graphs._Graph, "__init__", ORIGINAL)
    monkeypatch.setattr(graphs._Graph, "require_same", lambda _: None)
    monkeypatch.setattr(graphs._Graph, "replay", lambda self, _: self._out)
    recorded = Graphs(network, network.run)
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(MET_BEFORE + 1):
            recorded(rows(step), CHOSEN)
    gc.collect()
    assert len(made) == len(list(network.parameters()))
    assert all(x() is not None for x in made)


@pytest.mark.parametrize("wrong", ["out", "gradient", "not a number"])
def test_a_graph_that_gives_something_else_is_refused(network, monkeypatch, wrong):
    replay = CPUGraph.replay

    def spoiled(graph):
        replay(graph)
        (owner,) = [one for one in made if graph in (one._forward, one._backward)]
        number = owner._out if wrong == "out" else owner.of_weights[-3]
        number.mul_(torch.nan if wrong == "not a number" else 1.1)

    made = []
    record = graphs._Graph.__init__

    def recorded(self, *given):
        record(self, *given)
        made.append(self)

    monkeypatch.setattr(graphs._Graph, "__init__", recorded)
    monkeypatch.setattr(CPUGraph, "replay", spoiled)
    run = Graphs(network, network.run)
    for step in range(MET_BEFORE):
        run(rows(step), CHOSEN)
    with pytest.raises(ConfigError, match="CUDA graphs do not give here what the network gives"):
        run(rows(5), CHOSEN)
    assert len(run) == 0


def test_other_shapes_values_and_frozen_weights_have_graphs_of_their_own(network):
    recorded = Graphs(network, network.run)

    def same(x, chosen, count):
        for _ in range(MET_BEFORE + 2):
            assert torch.equal(recorded(x, chosen), network.run(x, chosen))
        assert len(recorded) == count

    same(rows(0), CHOSEN, 1)
    same(rows(0, 6), CHOSEN, 2)
    same(rows(0), Chosen(CHOSEN.rows, twice=False), 3)
    with torch.no_grad():
        same(rows(0), CHOSEN, 4)
        kept = recorded(rows(1), CHOSEN)
        wanted = kept.clone()
        recorded(rows(2), CHOSEN)
        assert torch.equal(kept, wanted), "what came out without gradients is overwritten"
    network.one.requires_grad_(False)
    same(rows(0), CHOSEN, 5)
    network.requires_grad_(False)
    same(rows(0), CHOSEN, 6)
    assert not recorded(rows(0), CHOSEN).requires_grad
    same(rows(0).requires_grad_(), CHOSEN, 7)
    network.eval()
    same(rows(0).requires_grad_(), CHOSEN, 8)
    with torch.inference_mode():
        same(rows(0), CHOSEN, 9)
    with torch.no_grad():
        same(rows(0), CHOSEN, 10)


def test_shapes_are_recorded_when_they_come_again_and_not_without_end(network):
    recorded = Graphs(network, network.run)
    for count in range(3, MOST_GRAPHS + 8):
        for time in range(MET_BEFORE + 1):
            assert len(recorded) == min(count - 3, MOST_GRAPHS), time
            recorded(rows(0, count), CHOSEN)
    assert len(recorded) == MOST_GRAPHS


def test_what_was_first_met_in_inference_mode_can_be_trained(network):
    recorded = Graphs(network, network.run)
    with torch.inference_mode():
        recorded(rows(0), CHOSEN)
    for step in range(MET_BEFORE + 2):
        recorded(rows(step), CHOSEN).sum().backward()
    assert len(recorded) == 1


def test_nothing_is_recorded_while_it_may_not_be(network):
    recorded = Graphs(network, network.run, lambda: network.training)
    network.eval()
    for _ in range(MET_BEFORE + 2):
        assert torch.equal(recorded(rows(0), CHOSEN), network.run(rows(0), CHOSEN))
    assert len(recorded) == 0


def test_new_values_of_weights_are_seen_and_other_weights_recorded_anew(network):
    recorded = Graphs(network, network.run)
    for _ in range(MET_BEFORE + 2):
        recorded(rows(0), CHOSEN)
    with torch.no_grad():
        network.one.weight.mul_(2)
    assert torch.equal(recorded(rows(0), CHOSEN), network.run(rows(0), CHOSEN))
    assert len(recorded) == 1
    network.one.weight.data = network.one.weight.data * 3  # lies somewhere else
    for _ in range(MET_BEFORE + 1):
        assert torch.equal(recorded(rows(0), CHOSEN), network.run(rows(0), CHOSEN))
    assert len(recorded) == 2


GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=GPU) for name in ("ssfm", "mpm", "gpt", "dino", "jepa")]
)
def test_training_from_graphs_is_training(printed_by, method):
    assert printed_by("recorded.py", method).startswith(f"{method}: ")
