"""Files to come: each appears under its name when it is whole, or not at all."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from jetssl_cli.errors import DataError, reason

MOST_TRIES = 100
"""Of making a folder and a file in it, while another process removes the folder."""
T = TypeVar("T")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path``; what the block has written there appears under ``path``.

    It is on the disk before it appears, and it does so only if the block ends without an error;
    whatever goes wrong, nothing of it stays behind. What a killed process left of an earlier
    attempt is removed.

    Raises:
        DataError: the file cannot be written.
    """
    partial = _beside(path)
    try:
        with folder_for(path), _gone_afterwards(partial):
            for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                old.unlink(missing_ok=True)
            yield partial
            to_disk(partial)
            partial.replace(path)
    except OSError as err:
        raise DataError(f"{path}: cannot be written: {reason(err)}") from None


def require_place(path: Path) -> None:
    """Refuse a file to come that cannot be written, before the work for it is done.

    Raises:
        DataError: no file can be made there.
    """
    partial = _beside(path)
    try:
        with folder_for(path), _gone_afterwards(partial):
            partial.touch()
    except OSError as err:
        raise DataError(f"{path}: cannot be written: {reason(err)}") from None


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Make the folder of a file to come; if it does not come, folders made for it go again."""
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        in_folder_of(path, lambda: None)
        yield
    finally:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def in_folder_of(path: Path, make: Callable[[], T]) -> T:
    """Make the folder of a file, and what ``make`` makes in it.

    Again and again: another process removes the folders that it has made for a file that does not
    come.
    """

    def attempt() -> T:
        path.parent.mkdir(parents=True, exist_ok=True)
        return make()

    for _ in range(MOST_TRIES):
        with suppress(FileNotFoundError, FileExistsError):
            return attempt()
    return attempt()


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def _gone_afterwards(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
