"""CUDA graphs: what a network does to inputs of one shape is recorded, then sent off as a whole.

The host takes longer to send off the kernels of a step, one by one, than a fast GPU to run them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jetssl_cli.encoder.leaves import key_of, tensors, with_tensors
from jetssl_cli.encoder.weights import Weights
from jetssl_cli.errors import ConfigError

MET_BEFORE = 2
"""Shapes are recorded when they come for the third time: of the last batch of an epoch, say, there
is one alone."""
MOST_GRAPHS = 16
"""Of a network; each keeps its inputs, its output, and weights in half precision."""
MOST_AWAY = 0.05
"""Relative distance of what a graph gives from what was computed without: sums in another order."""


class Graphs:
    """Runs a function of the weights of a network, from graphs where the shapes have come before.

    What is returned is the same either way. Graphs are told apart by the shapes of all tensors, by
    everything that is no tensor, and by what has gradients. Each is compared with the function when
    it was recorded. They share their memory: as long as a pass back may come, for which the numbers
    of the pass forward are kept, none is run.
    """

    def __init__(
        self,
        network: nn.Module,
        function: Callable[..., Tensor],
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Record ``function``, a method of the network, while ``allowed`` says so."""
        self.called, self._allowed = _Called(network, function), allowed
        self._met: Counter[Hashable] = Counter()
        self._known: dict[Hashable, _Graph] = {}
        self._pool: Any = None
        self._flight: Callable[[], object] = lambda: None

    @property
    def waiting(self) -> bool:
        """Whether a pass back may still come."""
        return self._flight() is not None

    def __len__(self) -> int:
        """How many were recorded."""
        return len(self._known)

    def __call__(self, *args: object) -> Tensor:
        """What the function makes of these; (nested) tuples and dataclasses may hold tensors."""
        inputs = list(tensors(args))
        with _autocast_anew(inputs[0].device.type):
            graph = None if self.waiting else self._graph(args, inputs)
            if graph is None:
                return self.called.function(*args)
            if not graph.learns:
                return graph.replay(inputs).clone()
            flight = _Flight()
            self._flight = weakref.ref(flight)
            others = self._weights.values if dist.is_initialized() else [self._weights.anchor]
            out: Tensor = _Replay.apply(graph, flight, len(inputs), *inputs, *others)  # type: ignore[no-untyped-call]
            return out

    @cached_property
    def _weights(self) -> Weights:
        """Looked for once, not in every step."""
        return Weights(self.called)

    def _graph(self, args: Sequence[object], inputs: Sequence[Tensor]) -> _Graph | None:
        weights = self._weights.values
        grad = torch.is_grad_enabled()
        learning = tuple(w.requires_grad for w in weights) if grad else ()
        places = tuple(w.data_ptr() for w in weights)
        modes = grad, torch.is_inference_mode_enabled(), self.called.network.training
        key = (key_of(args), learning, modes, places)
        if key not in self._known:
            self._met[key] += 1
            seldom = self._met[key] <= MET_BEFORE or len(self._known) == MOST_GRAPHS
            if seldom or not self._allowed():
                return None
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = _Graph(self.called, self._weights, args, inputs, self._pool)
            graph.require_same()
            self._known[key] = graph
        return self._known[key]


class _Called(nn.Module):
    """A function of the weights of a network, as a module."""

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *args: object) -> Tensor:
        return self.function(*args)


class _Graph:
    """One pass forward and, where there is something to learn, one back."""

    def __init__(
        self,
        called: _Called,
        weights: Weights,
        args: Sequence[object],
        inputs: Sequence[Tensor],
        pool: Any,
    ) -> None:
        self.weights = weights
        weights.put_aside()
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        given, stand_ins = with_tensors(args, iter(self.inputs)), weights.stand_ins()
        self._stand_ins = stand_ins  # a graph knows addresses, and holds nothing
        named = dict(zip(weights.names, stand_ins, strict=True))

        def forward() -> Tensor:
            weights.cast_into(stand_ins)
            out: Tensor = torch.func.functional_call(called, named, given)
            return out

        def backward(out: Tensor) -> None:
            wanted = [x for x in (*self.inputs, *stand_ins) if x.requires_grad]
            by_id = dict(zip(map(id, wanted), _gradients(out, wanted, self._above), strict=True))
            self.of_inputs = [by_id.get(id(x)) for x in self.inputs]
            found = [by_id.get(id(x)) for x in stand_ins]
            weights.keep(found)
            self.of_weights = [
                None if new is None else own
                for own, new in zip(weights.gradients, found, strict=True)
            ]

        with _on_side_stream():
            for _ in range(2):
                out = forward()
                self.learns, self._out = out.requires_grad, out.detach()
                if self.learns:
                    self._above = _noise(out)
                    backward(out)
                del out
            self._first = [x.clone() for x in self._found]
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _recorded(self._forward, pool):
            out = forward()
        if self.learns:
            with _recorded(self._backward, pool):
                backward(out)
        self._out = out.detach()

    @property
    def _found(self) -> list[Tensor]:
        """What came out, and the gradients of the last pass back."""
        gradients = (*self.of_inputs, *self.of_weights) if self.learns else ()
        return [self._out, *(g for g in gradients if g is not None)]

    def require_same(self) -> None:
        """Run, and compare with what was found before anything was recorded.

        Raises:
            ConfigError: it is something else.
        """
        self._forward.replay()
        if self.learns:
            self._backward.replay()
        for own, first in zip(self._found, self._first, strict=True):
            away = torch.linalg.vector_norm(own.float() - first.float())
            size = torch.linalg.vector_norm(first.float())
            if size.isfinite() and not away <= MOST_AWAY * size + 1e-12:
                raise ConfigError(
                    "train.compile = True: CUDA graphs do not give here what the network gives; "
                    "leave it out"
                )
        del self._first

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run forward; the numbers that come out stand until the next time."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self._forward.replay()
        return self._out

    def replay_back(self, above: Tensor) -> None:
        """Run back; gradients of weights stand until the next time, those of inputs do not."""
        self.weights.put_aside()
        self._above.copy_(above)
        self._backward.replay()


class _Flight:
    """Lives until the pass back, or as long as the node of autograd that waits for it."""


class _Replay(Function):
    """Gradients of weights are handed over; where other processes wait for them, by autograd."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, flight: _Flight, count: int, *tensors: Tensor) -> Tensor:
        ctx.graph, ctx.flight = graph, flight
        ctx.by_autograd = tensors[count] is not graph.weights.anchor
        return graph.replay(tensors[:count]).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.flight is None:
            raise RuntimeError("a graph goes back once: what it needs may be overwritten by now")
        graph = ctx.graph
        graph.replay_back(above)
        ctx.flight = None
        of_inputs = (None if g is None else g.clone() for g in graph.of_inputs)
        if ctx.by_autograd:
            of_weights = (None if g is None else g.detach() for g in graph.of_weights)
            return None, None, None, *of_inputs, *of_weights
        graph.weights.hand_over(graph.of_weights)
        return None, None, None, *of_inputs, None


def _gradients(out: Tensor, wanted: Sequence[Tensor], above: Tensor) -> tuple[Tensor | None, ...]:
    """Found by this thread: no other is recorded."""
    with (
        torch.autocast(out.device.type, enabled=False),
        torch.autograd.set_multithreading_enabled(False),
    ):
        return torch.autograd.grad(out, wanted, above, allow_unused=True)


def _noise(like: Tensor) -> Tensor:
    """Random numbers; those that a run draws stay what they are."""
    rng = torch.Generator(like.device).manual_seed(0)
    return torch.randn(like.shape, generator=rng, device=like.device, dtype=like.dtype)


@contextmanager
def _on_side_stream() -> Iterator[None]:
    """Nothing may be recorded that was not run before, on another stream than the usual."""
    side, usual = _side_stream(torch.cuda.current_device()), torch.cuda.current_stream()
    side.wait_stream(usual)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        usual.wait_stream(side)


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _recorded(graph: torch.cuda.CUDAGraph, pool: Any) -> AbstractContextManager[None]:
    """Record into a graph; other threads, which pin memory for example, may go on meanwhile."""
    recorded: AbstractContextManager[None] = torch.cuda.graph(
        graph, pool=pool, capture_error_mode="relaxed"
    )
    return recorded


def _autocast_anew(device: str) -> AbstractContextManager[object]:
    """Autocast as it is, but weights are cast in every call: a graph holds no copy of old ones."""
    if not torch.is_autocast_enabled(device):
        return ExitStack()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
