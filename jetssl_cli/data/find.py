"""Which data files somebody means who names files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jetssl_cli.errors import DataError, reason


def find(sources: Sequence[Path], *suffixes: str) -> list[Path]:
    """All files that the sources name, each once, sorted by their full path.

    Of a folder, the files that end in the first of the suffixes that occurs in it; links to other
    folders are followed, what is hidden is not looked at.

    Raises:
        DataError: no source, one that is missing, a folder that cannot be read, or that holds no
            such file.
    """
    if not sources:
        raise DataError("no source was given")
    found: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        files = [source]
        if source.is_dir():
            below = list(_below(source))
            inside = ([file for file in below if file.name.endswith(end)] for end in suffixes)
            files = next(filter(None, inside), [])
        if not files:
            raise DataError(f"{source}: the folder holds no *{' or *'.join(suffixes)} file")
        for file in files:
            found.setdefault(file.resolve(), file)
    return [found[key] for key in sorted(found)]


def _below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, those behind links to other folders last."""

    def unreadable(err: OSError) -> None:
        raise DataError(f"{err.filename}: cannot be read: {reason(err)}")

    seen: set[str] = set()
    folders = [folder]
    for each in folders:  # which grows
        for place, below, files in os.walk(each, onerror=unreadable):
            if (real := os.path.realpath(place)) in seen:
                below.clear()
                continue
            seen.add(real)
            yield from (Path(place, name) for name in files if not name.startswith("."))
            below[:] = [name for name in below if not name.startswith(".")]
            folders += [link for name in below if (link := Path(place, name)).is_symlink()]
