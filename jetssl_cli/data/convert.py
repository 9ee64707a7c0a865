"""``jetssl convert``: ROOT TTrees to jagged HDF5, one file per input."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from pydantic import PositiveInt

from jetssl_cli.config import Strict, to_yaml
from jetssl_cli.data.extract import extract, read_tree
from jetssl_cli.data.jagged import JaggedFile, JetArrays, find, write
from jetssl_cli.data.recipe import Recipe
from jetssl_cli.errors import DataError
from jetssl_cli.progress import progress

ENTRIES_PER_STEP = 10_000
"""Entries held in memory at a time."""


class ConvertConfig(Strict):
    """What to convert, how, and where to."""

    sources: tuple[Path, ...]
    """ROOT files, or folders that hold them."""
    recipe: Recipe
    """Which branches become which columns."""
    out: Path
    """Folder for the converted files; folders below a source are mirrored in it."""
    jobs: PositiveInt = 1
    """Processes; each converts one file at a time."""
    overwrite: bool = False
    """Convert again what is already there."""


class Converted(Strict):
    """What became of one input file."""

    source: Path
    output: Path
    classes: dict[str, int]
    """Jets of each class."""
    constituents: int = 0
    """Constituents stored."""
    dropped: int = 0
    """Constituents left out because they fit no particle class."""
    cut: int = 0
    """Constituents left out beyond the recipe's maximum."""
    skipped: bool = False
    """The output was there already, complete and made by the same recipe."""

    @property
    def num_jets(self) -> int:
        """Jets in the output."""
        return sum(self.classes.values())


class ConvertReport(Strict):
    """What a conversion did."""

    recipe: Recipe
    files: tuple[Converted, ...]
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
        return _in_order(total, self.recipe)


def convert(cfg: ConvertConfig) -> ConvertReport:
    """Convert every source; outputs that are already complete are kept.

    Raises:
        DataError: the first source that cannot be converted. Finished outputs stay, and no
            unfinished one is left under its final name.
    """
    start = time.monotonic()
    pairs = plan(cfg.sources, cfg.out)
    tasks = [(source, output, cfg.recipe, cfg.overwrite) for source, output in pairs]
    results: dict[Path, Converted] = {}
    with progress("convert", len(tasks), "files") as advance:
        for result in _run(tasks, min(cfg.jobs, len(tasks))):
            results[result.source] = result
            advance(1, f"{sum(r.num_jets for r in results.values()):,} jets")
    files = tuple(results[source] for source, _ in pairs)
    return ConvertReport(recipe=cfg.recipe, files=files, seconds=time.monotonic() - start)


def plan(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Pair every ROOT file with its output.

    Raises:
        DataError: no source, one that is missing, a folder that holds no ROOT file, or two
            inputs that would be written to one output.
    """
    if not sources:
        raise DataError("no source was given")
    pairs: dict[Path, Path] = {}
    for source in sources:
        for file in find([source], "*.root"):
            below = file.relative_to(source) if source.is_dir() else Path(file.name)
            output = (out / below).with_suffix(".h5")
            other = pairs.setdefault(output, file)
            if other.resolve() != file.resolve():
                raise DataError(f"{file}: would be written to {output}, and so would {other}")
    return [(file, output) for output, file in pairs.items()]


def convert_file(source: Path, output: Path, recipe: Recipe, overwrite: bool) -> Converted:
    """Convert one ROOT file.

    Raises:
        DataError: the source is not what the recipe expects, or the output is there already and
            was made in another way.
    """
    if output.exists() and not overwrite:
        return _existing(source, output, recipe)
    jets: Counter[str] = Counter()
    constituents = dropped = cut = 0
    with write(output, recipe, [source.name]) as writer:
        for branches in read_tree(source, recipe, ENTRIES_PER_STEP):
            part = extract(branches, recipe)
            writer.append(part.jets)
            jets.update(_per_class(part.jets, recipe))
            constituents += len(part.jets.ids)
            dropped += part.dropped
            cut += part.cut
        writer.describe({"dropped": dropped, "cut": cut})
    return Converted(
        source=source,
        output=output,
        classes=_in_order(jets, recipe),
        constituents=constituents,
        dropped=dropped,
        cut=cut,
    )


def _existing(source: Path, output: Path, recipe: Recipe) -> Converted:
    with JaggedFile(output) as file:
        if to_yaml(file.recipe) != to_yaml(recipe) or file.sources != [source.name]:
            raise DataError(
                f"{output}: is there already, made from {', '.join(file.sources[:3])} with the "
                f"recipe {file.recipe.name!r}; choose another folder or --overwrite"
            )
        jets: Counter[str] = Counter()
        constituents = 0
        for chunk in file.chunks(ENTRIES_PER_STEP):
            jets.update(_per_class(chunk, recipe))
            constituents += len(chunk.ids)
        left_out = file.counts("dropped", "cut")
    return Converted(
        source=source,
        output=output,
        classes=_in_order(jets, recipe),
        constituents=constituents,
        **left_out,
        skipped=True,
    )


def _per_class(jets: JetArrays, recipe: Recipe) -> Counter[str]:
    classes = recipe.labels.classes
    return Counter(classes[label] for label in jets.labels.tolist())


def _in_order(jets: Counter[str], recipe: Recipe) -> dict[str, int]:
    return {name: jets[name] for name in recipe.labels.classes if jets[name]}


def _run(tasks: list[tuple[Path, Path, Recipe, bool]], jobs: int) -> Iterator[Converted]:
    if jobs == 1:
        yield from (convert_file(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # h5py and uproot do not survive a fork
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        with _ignoring_interrupts():  # what the workers inherit: Ctrl-C is for this process alone
            futures = [pool.submit(convert_file, *task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise DataError(
            "a converting process was killed, perhaps for memory; finished files are kept: "
            "run again, with fewer --jobs"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # the files under way are finished


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
