"""CUDA graphs: what a network does to inputs of one shape is recorded, then sent off as a whole.

The host takes longer to send off the kernels of a step, one by one, than a fast GPU to run them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jetssl_cli.errors import ConfigError

Value = TypeVar("Value")

MET_BEFORE = 2
"""Shapes are recorded when they come for the third time: of the last batch of an epoch, say, there
is one alone."""
MOST_GRAPHS = 16
"""Of a network; each keeps its inputs, its output and the gradients of all weights."""
MOST_AWAY = 0.05
"""Relative distance of what a graph gives from what was computed without: sums in another order."""


class Graphs:
    """Runs a function of the weights of a network, from graphs where the shapes have come before.

    What is returned is the same either way. Graphs are told apart by the shapes of all tensors, by
    everything that is no tensor, and by what has gradients. Each is compared with the function when
    it was recorded. They share their memory: as long as a
    pass back may come, for which the numbers of the pass forward are kept, none is run.
    """

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]) -> None:
        self.called = _Called(network, function)
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
        inputs = list(_tensors(args))
        with _autocast_anew(inputs[0].device.type):
            graph = None if self.waiting else self._graph(args, inputs)
            if graph is None:
                return self.called.function(*args)
            if not graph.learns:
                return graph.replay(inputs).clone()
            flight = _Flight()
            self._flight = weakref.ref(flight)
            out: Tensor = _Replay.apply(graph, flight, len(inputs), *inputs, *self._weights)  # type: ignore[no-untyped-call]
            return out

    @cached_property
    def _weights(self) -> list[nn.Parameter]:
        """Looked for once, not in every step."""
        return list(self.called.parameters())

    def _graph(self, args: Sequence[object], inputs: Sequence[Tensor]) -> _Graph | None:
        weights = self._weights
        grad = torch.is_grad_enabled()
        learning = tuple(w.requires_grad for w in weights) if grad else ()
        places = tuple(w.data_ptr() for w in weights)
        key = (_key(args), learning, grad, self.called.training, places)
        if key not in self._known:
            self._met[key] += 1
            if self._met[key] <= MET_BEFORE or len(self._known) == MOST_GRAPHS:
                return None
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = _Graph(self.called, args, inputs, self._pool)
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
        self, called: _Called, args: Sequence[object], inputs: Sequence[Tensor], pool: Any
    ) -> None:
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        given = _with_tensors(args, iter(self.inputs))
        # Other parameters with the same numbers: those of the network may hang on earlier graphs of
        # autograd, which belong to another stream.
        aliases: dict[str, Tensor] = {
            name: nn.Parameter(p.detach(), p.requires_grad) for name, p in called.named_parameters()
        }

        def forward() -> Tensor:
            out: Tensor = torch.func.functional_call(called, aliases, given)
            return out

        with _on_side_stream():
            for _ in range(2):
                out = forward()
                self.learns = out.requires_grad
                self._first = [out.detach()]
                if self.learns:
                    wanted = [x for x in (*self.inputs, *aliases.values()) if x.requires_grad]
                    self._above = _noise(out)
                    found = _gradients(out, wanted, self._above)
                    self._first += [g for g in found if g is not None]
                del out
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _recorded(self._forward, pool):
            out = forward()
        self.gradients: list[Tensor | None] = []
        if self.learns:
            with _recorded(self._backward, pool):
                found = _gradients(out, wanted, self._above)
            by_id = dict(zip(map(id, wanted), found, strict=True))
            self.gradients = [by_id.get(id(x)) for x in (*self.inputs, *aliases.values())]
        self._out = out.detach()

    def require_same(self) -> None:
        """Run, and compare with what was found before anything was recorded.

        Raises:
            ConfigError: it is something else.
        """
        self._forward.replay()
        if self.learns:
            self._backward.replay()
        found = [self._out, *(g for g in self.gradients if g is not None)]
        for own, first in zip(found, self._first, strict=True):
            away = torch.linalg.vector_norm(own.float() - first.float())
            if away > MOST_AWAY * torch.linalg.vector_norm(first.float()) + 1e-12:
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

    def replay_back(self, above: Tensor) -> list[Tensor | None]:
        """Gradients of inputs and weights; they stand until the next time."""
        self._above.copy_(above)
        self._backward.replay()
        return self.gradients


class _Flight:
    """Lives until the pass back, or as long as the node of autograd that waits for it."""


class _Replay(Function):
    @staticmethod
    def forward(ctx: Any, graph: _Graph, flight: _Flight, count: int, *tensors: Tensor) -> Tensor:
        ctx.graph, ctx.flight, ctx.weights = graph, flight, tensors[count:]
        return graph.replay(tensors[:count]).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.flight is None:
            raise RuntimeError("a graph goes back once: what it needs may be overwritten by now")
        own = ctx.graph.gradients[-len(ctx.weights) :]
        for weight, gradient in zip(ctx.weights, own, strict=True):
            grad = weight.grad  # of an earlier part of the batch, it may be ours
            if grad is None or gradient is None or grad.data_ptr() != gradient.data_ptr():
                continue  # autograd has kept a copy of it, where it did not lie as the weight does
            weight.grad = grad.clone()
        found = ctx.graph.replay_back(above)
        ctx.flight = None
        return None, None, None, *(None if g is None else g.detach() for g in found)


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
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    usual = torch.cuda.current_stream()
    side.wait_stream(usual)
    with torch.cuda.stream(side):
        yield
    usual.wait_stream(side)


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


def _parts(value: object) -> Sequence[object] | None:
    """Of a tuple or dataclass."""
    if isinstance(value, tuple):
        return value
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return None


def leaves(value: object) -> Iterator[object]:
    """What (nested) tuples and dataclasses hold."""
    parts = _parts(value)
    return iter([value]) if parts is None else chain.from_iterable(map(leaves, parts))


def _tensors(value: object) -> Iterator[Tensor]:
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def _key(value: object) -> Hashable:
    """Equal for values that differ in the numbers of their tensors alone."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    parts = _parts(value)
    if parts is None:
        assert isinstance(value, Hashable)
        return value
    return type(value), *map(_key, parts)


def _with_tensors(value: Value, tensors: Iterator[Tensor]) -> Value:
    """The same with other tensors in the place of its own, in their order."""
    found: Any = value
    if isinstance(value, Tensor):
        found = next(tensors)
    elif isinstance(value, tuple):
        found = tuple(_with_tensors(part, tensors) for part in value)
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        found = replace(
            value, **{name: _with_tensors(getattr(value, name), tensors) for name in names}
        )
    return found
