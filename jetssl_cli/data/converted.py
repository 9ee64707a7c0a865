"""One source and the data file that is made of it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jetssl_cli.config import Strict
from jetssl_cli.data.extract import Extracted, extract
from jetssl_cli.data.jagged import JaggedFile, Precision
from jetssl_cli.data.recipe import Recipe
from jetssl_cli.data.write import write
from jetssl_cli.errors import DataError, reason

BYTES_OF_AN_END = 2**16


class SourceError(DataError):
    """A source cannot be read, or is not what the recipe expects."""


class Converted(Strict):
    """What became of one input file."""

    source: Path
    output: Path
    classes: dict[str, int]
    """Jets of each class."""
    constituents: int = 0
    """Constituents stored."""
    left_out: dict[str, int]
    """Jets and constituents that were left out: reason -> number."""
    skipped: bool = False
    """The output was there already, complete and made in the same way."""

    @property
    def num_jets(self) -> int:
        """Jets in the output."""
        return sum(self.classes.values())


def convert_file(
    source: Path,
    output: Path,
    recipe: Recipe,
    precision: Precision = "float32",
    overwrite: bool = False,
) -> Converted:
    """Convert one file.

    Raises:
        SourceError: the source is not what the recipe expects.
        DataError: the output cannot be written, or is there already and was made in another way.
    """
    identity = _identity(source)
    if output.exists() and not overwrite:
        return _existing(source, identity, output, recipe, precision)
    jets: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    constituents = 0
    with write(output, recipe, [source.name], precision=precision) as writer:
        writer.note_source(identity)
        for part, without in _extract(source, recipe, precision):
            writer.append(part)
            jets.update(_per_class(part.labels.tolist(), recipe))
            constituents += len(part.ids)
            left_out.update(without)
        if not jets:
            raise SourceError(f"{source}: no jet is left: {_reasons(left_out)}")
        writer.note_left_out(left_out)
    return Converted(
        source=source,
        output=output,
        classes=in_order(jets, recipe),
        constituents=constituents,
        left_out=dict(left_out),
    )


def in_order(jets: Counter[str], recipe: Recipe) -> dict[str, int]:
    """Jets of each class that has any, in the order of the labels."""
    return {name: jets[name] for name in recipe.labels.classes if jets[name]}


def _extract(source: Path, recipe: Recipe, precision: Precision) -> Iterator[Extracted]:
    try:
        yield from extract(source, recipe, precision)
    except DataError as err:
        raise SourceError(str(err)) from None


def _identity(source: Path) -> str:
    """Size and both ends of a file, by which it is known from others of its name.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        with source.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            ends = hashlib.sha256()
            for begin in (0, max(size - BYTES_OF_AN_END, 0)):
                file.seek(begin)
                ends.update(file.read(BYTES_OF_AN_END))
    except OSError as err:
        raise SourceError(f"{source}: cannot be read: {reason(err)}") from None
    return f"{size}:{ends.hexdigest()}"


def _existing(
    source: Path, identity: str, output: Path, recipe: Recipe, precision: Precision
) -> Converted:
    with JaggedFile(output) as file:
        if file.source_identity not in (None, identity):  # older files have none
            raise DataError(
                f"{output}: is there already, made from another {source.name} than {source}; "
                "choose another folder or --overwrite"
            )
        made = (file.recipe.text, file.precision, file.sources)
        if made != (recipe.text, precision, [source.name]):
            raise DataError(
                f"{output}: is there already, made from {', '.join(file.sources[:3])} with the "
                f"recipe {file.recipe.name!r} and other settings; choose another folder or "
                "--overwrite"
            )
        jets = _per_class(file.labels().tolist(), recipe)
        return Converted(
            source=source,
            output=output,
            classes=in_order(jets, recipe),
            constituents=file.num_constituents,
            left_out=file.left_out,
            skipped=True,
        )


def _per_class(labels: list[int], recipe: Recipe) -> Counter[str]:
    classes = recipe.labels.classes
    return Counter({classes[label]: count for label, count in Counter(labels).items()})


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{number:,} {why}" for why, number in left_out.items() if number)
