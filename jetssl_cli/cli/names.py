"""Names that a shell can complete, found without importing anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jetssl_cli.config import shipped_names

ATTENTION = ("auto", "triton", "flash-attn", "varlen", "padded", "reference")
PRECISIONS = ("auto", "32", "bf16-mixed")
MODES = ("frozen", "full", "from-scratch", "random")
SPLITS = ("train", "val", "test")
REPORT_FORMATS = ("rich", "markdown", "json")
TABLE_FORMATS = ("rich", "markdown", "csv", "json", "latex")
"""Copies of what the configs allow, which a test compares: their modules take seconds to import."""

Complete = Callable[[str], list[str]]


def one_of(names: Iterable[str]) -> Complete:
    """Complete one of these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def some_of(names: Iterable[str]) -> Complete:
    """Complete the last of some names with commas between them, each but once."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [
            f"{before}{comma}{name}"
            for name in names
            if name.startswith(last) and name not in given
        ]

    return complete


def preset(folder: str) -> Complete:
    """Complete the name of a shipped YAML file of a folder."""

    def complete(incomplete: str) -> list[str]:
        return one_of(shipped_names(folder))(incomplete)

    return complete


def process(dataset: str) -> Complete:
    """Complete processes of a simulated data set."""

    def complete(incomplete: str) -> list[str]:
        from jetssl_cli.data.simulation.processes import BTAG_PROCESSES, PROCESSES

        return some_of(PROCESSES if dataset == "jetclass" else BTAG_PROCESSES)(incomplete)

    return complete
