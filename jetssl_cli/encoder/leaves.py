"""Tensors in (nested) tuples and dataclasses: found, told apart, replaced."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def leaves(value: object) -> Iterator[object]:
    """What (nested) tuples and dataclasses hold."""
    parts = _parts(value)
    return iter([value]) if parts is None else chain.from_iterable(map(leaves, parts))


def tensors(value: object) -> Iterator[Tensor]:
    """Those of them that are tensors."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def key_of(value: object) -> Hashable:
    """A key that is equal for values that differ in the numbers of their tensors alone."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    parts = _parts(value)
    if parts is None:
        assert isinstance(value, Hashable)
        return value
    return type(value), *map(key_of, parts)


def with_tensors(value: Value, others: Iterator[Tensor]) -> Value:
    """The same with ``others`` in the place of its own tensors, in their order."""
    found: Any = value
    if isinstance(value, Tensor):
        found = next(others)
    elif isinstance(value, tuple):
        found = tuple(with_tensors(part, others) for part in value)
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        found = replace(
            value, **{name: with_tensors(getattr(value, name), others) for name in names}
        )
    return found


def _parts(value: object) -> Sequence[object] | None:
    """Of a tuple or dataclass."""
    if isinstance(value, tuple):
        return value
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return None
