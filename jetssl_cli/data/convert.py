"""``jetssl convert``: ROOT, parquet or padded HDF5 to jagged HDF5, one file per input."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import PositiveInt

from jetssl_cli.config import Strict
from jetssl_cli.data.converted import Converted, SourceError, convert_file, in_order
from jetssl_cli.data.find import find
from jetssl_cli.data.jagged import Precision
from jetssl_cli.data.recipe import Recipe
from jetssl_cli.data.workers import share
from jetssl_cli.errors import DataError, reason
from jetssl_cli.progress import progress

SUFFIXES = (".root", ".parquet", ".h5", ".hdf5")
"""What is converted of a folder: the files of the first of these kinds that occurs in it."""
BAD_FILES = "bad_files.json"
"""File in the output folder that names the sources that ``skip_bad`` left out, and why."""


class ConvertConfig(Strict):
    """What to convert, how, and where to."""

    sources: tuple[Path, ...]
    """Files, or folders that hold them."""
    recipe: Recipe
    """Which branches become which columns."""
    out: Path
    """Folder for the converted files; folders below a source are mirrored in it."""
    jobs: PositiveInt = 1
    """Processes; each converts one file at a time."""
    half: bool = False
    """Store the constituent features as float16."""
    max_constituents: PositiveInt | None = None
    """Store at most so many constituents of a jet, if fewer than the recipe says."""
    skip_bad: bool = False
    """Go on after a source that cannot be converted."""
    overwrite: bool = False
    """Convert again what is already there."""

    @property
    def precision(self) -> Precision:
        """Type of the constituent features."""
        return "float16" if self.half else "float32"

    @property
    def effective_recipe(self) -> Recipe:
        """The recipe with the limit that was asked for."""
        most = min(self.max_constituents or self.recipe.max_constituents,
                   self.recipe.max_constituents)  # fmt: skip
        return self.recipe.model_copy(update={"max_constituents": most})


class BadFile(Strict):
    """A source that could not be converted."""

    path: Path
    reason: str


class ConvertReport(Strict):
    """What a conversion did."""

    recipe: Recipe
    files: tuple[Converted, ...]
    bad: tuple[BadFile, ...] = ()
    seconds: float

    @property
    def num_jets(self) -> int:
        """Jets in all outputs."""
        return sum(file.num_jets for file in self.files)

    @property
    def classes(self) -> dict[str, int]:
        """Jets of each class in all outputs, in the order of the labels."""
        total: Counter[str] = Counter()
        for file in self.files:
            total.update(file.classes)
        return in_order(total, self.recipe)

    @property
    def left_out(self) -> dict[str, int]:
        """Jets and constituents that were left out of all outputs: reason -> number."""
        total: Counter[str] = Counter()
        for file in self.files:
            total.update(file.left_out)
        return dict(total)


class _Task(NamedTuple):
    """One file to convert."""

    source: Path
    output: Path
    recipe: Recipe
    precision: Precision
    overwrite: bool
    skip_bad: bool


def convert(cfg: ConvertConfig) -> ConvertReport:
    """Convert every source; outputs that are already complete are kept.

    With ``skip_bad``, sources that cannot be converted are named in ``bad_files.json`` in the
    output folder.

    Raises:
        DataError: a source cannot be converted (with ``skip_bad``: none can), or an output cannot
            be written. Finished outputs stay, and no unfinished one is left under its final name.
    """
    start = time.monotonic()
    if cfg.out.is_file():
        raise DataError(f"--out {cfg.out}: is a file; a folder is needed")
    pairs = plan(cfg.sources, cfg.out)
    recipe = cfg.effective_recipe
    tasks = [_Task(*pair, recipe, cfg.precision, cfg.overwrite, cfg.skip_bad) for pair in pairs]
    results: dict[Path, Converted | BadFile] = {}
    jets = 0
    with progress("convert", len(tasks), "files") as advance:
        for task, result in share(_work, tasks, cfg.jobs, doing="converting"):
            results[task.source] = result
            jets += result.num_jets if isinstance(result, Converted) else 0
            advance(1, f"{jets:,} jets")
    ordered = [results[source] for source, _ in pairs]
    bad = tuple(result for result in ordered if isinstance(result, BadFile))
    if len(bad) == len(pairs):
        raise DataError(f"none of the {len(bad)} sources can be converted; {bad[0].reason}")
    if cfg.skip_bad:
        _note_bad(cfg.out / BAD_FILES, bad)
    return ConvertReport(
        recipe=recipe,
        files=tuple(result for result in ordered if isinstance(result, Converted)),
        bad=bad,
        seconds=time.monotonic() - start,
    )


def plan(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Pair every source file with its output; a file that two sources name has one.

    Raises:
        DataError: no source, one that is missing, a folder that holds no file to convert, or two
            inputs that would be written to one output.
    """
    if not sources:
        raise DataError("no source was given")
    pairs: dict[Path, Path] = {}
    planned: set[Path] = set()
    for source in sources:
        for file in find([source], *SUFFIXES):
            below = file.relative_to(source) if source.is_dir() else Path(file.name)
            if file.resolve() in planned:
                continue
            output = (out / below).with_suffix(".h5")
            if output.resolve() == file.resolve():
                raise DataError(f"{file}: would be written over itself; choose another folder")
            if output in pairs:
                raise DataError(
                    f"{file}: would be written to {output}, and so would {pairs[output]}"
                )
            pairs[output] = file
            planned.add(file.resolve())
    return [(file, output) for output, file in pairs.items()]


def _note_bad(path: Path, bad: Sequence[BadFile]) -> None:
    try:
        path.unlink(missing_ok=True)
        if bad:
            text = json.dumps([file.model_dump(mode="json") for file in bad], indent=2)
            path.write_text(text + "\n", encoding="utf-8")
    except OSError as err:
        raise DataError(f"{path}: cannot be written: {reason(err)}") from None


def _work(task: _Task) -> Converted | BadFile:
    try:
        return convert_file(task.source, task.output, task.recipe, task.precision, task.overwrite)
    except SourceError as err:
        if not task.skip_bad:
            raise
        left = f"; {task.output} is of an earlier conversion" if task.output.exists() else ""
        return BadFile(path=task.source, reason=f"{err}{left}")
