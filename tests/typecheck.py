"""The type checker that executes the annotations of the package while the tests run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``beartype``, silent about the deprecated hints of torch's base classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(function)
