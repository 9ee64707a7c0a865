"""The type checker that executes the annotations of the package while the tests run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``beartype`` for a function by itself, which cannot know which class ``Self`` means."""
    hints = function.__annotations__
    function.__annotations__ = {
        name: hint for name, hint in hints.items() if "Self" not in str(hint)
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", BeartypeDecorHintPep585DeprecationWarning
        )  # of torch's bases
        return beartype(function)
