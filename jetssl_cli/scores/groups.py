"""Runs that differ by their seed become one row: the mean, and the spread over the seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from fnmatch import fnmatch

from jetssl_cli.errors import ConfigError, DataError, suggest
from jetssl_cli.progress import note
from jetssl_cli.scores.identity import differ, same_jets
from jetssl_cli.scores.metrics import (
    UNDEFINED,
    WORKING_POINTS,
    Calibration,
    Estimate,
    Rejection,
)
from jetssl_cli.scores.rows import Row, run_names
from jetssl_cli.scores.single import Evaluated


def grouped(runs: Sequence[Evaluated], patterns: Sequence[str]) -> list[Row]:
    """One row for each run, or for all of a group.

    Args:
        runs: in the order given.
        patterns: ``NAME=PATTERN``; all other runs are grouped by what their files say.

    Raises:
        ConfigError: a pattern that means nothing, or two that mean the same run.
        DataError: runs of a pattern are not on the same jets.
    """
    names = run_names([run.row for run in runs])
    groups: list[tuple[str, list[int]]] = []
    for pattern in patterns:
        name, equals, glob = pattern.partition("=")
        if not name or not equals or not glob:
            raise ConfigError(f"group {pattern!r}: expected NAME=PATTERN")
        if name in dict(groups):
            raise ConfigError(f"group {pattern!r}: the name {name!r} is given twice")
        members = [
            place
            for place, run in enumerate(runs)
            if any(fnmatch(text, glob) for text in (names[place], run.row.run, run.row.scores))
        ]
        if not members:
            raise ConfigError(f"group {pattern!r}: no run is named so; {suggest(glob, names)}")
        taken = {place for _, others in groups for place in others}.intersection(members)
        if taken:
            raise ConfigError(f"group {pattern!r}: {names[min(taken)]} is in another group already")
        if len(members) == 1:
            note(f"group {pattern!r}: matches {names[members[0]]} alone; nothing is averaged")
        _require_same_jets([runs[place] for place in members])
        groups.append((name, members))
    left = set(range(len(runs))) - {place for _, members in groups for place in members}
    for members in _by_seed(runs, sorted(left)):
        groups.append((common_name([names[place] for place in members]), members))
    rows = [
        average([runs[place].row for place in members], name)
        for name, members in groups
        if len(members) > 1
    ]
    several = {score for row in rows for score in row.seeds}
    return rows + [run.row for run in runs if run.row.scores not in several]


def _require_same_jets(runs: Sequence[Evaluated]) -> None:
    first, *others = runs
    for other in others:
        if differ(first.jets, other.jets):
            raise DataError(
                f"{other.row.scores}: its jets are not those of {first.row.scores}; "
                "only runs on the same jets can be averaged"
            )


def _by_seed(runs: Sequence[Evaluated], places: Sequence[int]) -> list[list[int]]:
    """Runs on the same jets whose files say that they differ by the seed alone."""
    groups: list[list[int]] = []
    for place in places:
        own = runs[place]
        if own.group is None:
            continue
        for members in groups:
            first = runs[members[0]]
            seeds = {runs[member].seed for member in members}
            if (
                first.group == own.group
                and own.seed not in seeds
                and same_jets(first.jets, own.jets)
            ):
                members.append(place)
                break
        else:
            groups.append([place])
    return [members for members in groups if len(members) > 1]


def average(rows: Sequence[Row], run: str) -> Row:
    """The mean of each figure over runs that differ by their seed, and their standard deviation."""
    signals = [name for name in WORKING_POINTS if all(name in row.rejection for row in rows)]
    return Row(
        scores=rows[0].scores,
        run=run,
        num_jets=rows[0].num_jets,
        accuracy=_mean([row.accuracy for row in rows]),
        auc=_mean([row.auc for row in rows]),
        calibration=_mean_calibration([row.calibration for row in rows]),
        rejection={
            name: _mean_rejection([row.rejection[name] for row in rows]) for name in signals
        },
        classes=rows[0].classes,
        confusion=tuple(
            tuple(map(sum, zip(*lines, strict=True)))
            for lines in zip(*(row.confusion for row in rows), strict=True)
        ),
        seeds=tuple(row.scores for row in rows),
    )


def common_name(names: Sequence[str]) -> str:
    """What the names of runs begin with, without what announces a seed, and digits of it."""
    shared = ""
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        shared += letters[0]
    if any(name[len(shared) :][:1].isdigit() for name in names):
        shared = shared.rstrip("0123456789")
    shared = re.sub(r"((^|[-_. /]+)(seeds?|s))?[-_. /]*$", "", shared)
    return shared or names[0]


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """And one standard deviation on both sides, be it beyond what the figure can be."""
    values = [found.value for found in estimates if found.value is not None]
    if len(values) < len(estimates):
        return UNDEFINED
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return Estimate(mean, mean - spread, mean + spread)


def _mean_rejection(rejections: Sequence[Rejection | None]) -> Rejection | None:
    """Of bounds the smallest, which is one for all; bounds and numbers have no mean."""
    there = [found for found in rejections if found is not None]
    bounds = [found.value for found in there if found.bound]
    if len(there) < len(rejections) or 0 < len(bounds) < len(there):
        return None
    efficiency = statistics.fmean(found.efficiency for found in there)
    if bounds:
        return Rejection(min(bounds), min(bounds), None, efficiency, bound=True)
    mean = statistics.fmean(found.value for found in there)
    spread = statistics.stdev(found.value for found in there)
    return Rejection(mean, mean - spread, mean + spread, efficiency, bound=False)


def _mean_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """All jets of all runs in one diagram."""
    counts = [found.num_jets for found in calibrations]

    def pooled(each: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
        return tuple(
            sum(n * (value or 0.0) for n, value in zip(numbers, values, strict=True)) / sum(numbers)
            if sum(numbers)
            else None
            for numbers, values in zip(
                zip(*counts, strict=True), zip(*each, strict=True), strict=True
            )
        )

    return Calibration(
        _mean([found.error for found in calibrations]),
        tuple(map(sum, zip(*counts, strict=True))),
        pooled([found.confidence for found in calibrations]),
        pooled([found.accuracy for found in calibrations]),
    )
