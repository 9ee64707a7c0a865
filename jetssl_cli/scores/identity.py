"""Which jets the numbers of a file are of: what is told of two files, and whether it agrees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_OF_DATA, HASH_OF_LABELS = "data_hash", "labels"


def same_jets(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities are those of the same jets in the same order.

    The labels have to agree, and the data or, where only one file tells its data, all jet features
    that both have. Labels alone say nothing.
    """
    return bool(_common(one, other)) and not differ(one, other)


def differ(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities cannot be those of the same jets in the same order."""
    return any(one[name] != other[name] for name in (*_common(one, other), HASH_OF_LABELS))


def _common(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """What both tell of their jets beside the labels, or that of it which says all."""
    common = one.keys() & other.keys() - {HASH_OF_LABELS}
    return {HASH_OF_DATA} if HASH_OF_DATA in common else common


def hash_of(values: NDArray[Any]) -> str:
    """Of one jet feature, in float32 as our own files have it."""
    return _digest(values.astype(np.float32))


def exact_hash_of(values: NDArray[Any]) -> str | None:
    """Of one jet feature in whole numbers, as integers or in float64; None where it is none.

    In float32, numbers of events from 2^24 on are those of their neighbours as well. What is no
    whole number counts in float32 alone: the same feature is printed with more or fewer digits.
    """
    is_float = values.dtype.kind == "f"
    if is_float and values.dtype.itemsize < 8:
        return None
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    return None if is_float and (whole != values).any() else _digest(whole)


def _digest(values: NDArray[Any]) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
