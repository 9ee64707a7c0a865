"""HDF5 files that are whole or absent: arrays grown row by row. The only importer of h5py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # locks fail on network file systems

import h5py
import numpy as np
from numpy.typing import NDArray

from jetssl_cli.errors import DataError

CHUNK_BYTES = 256 * 1024


class Table:
    """Named arrays in an open HDF5 file, each of which grows along its first axis."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows to the array ``name``; the first call fixes its type and its other axes."""
        if name not in self._file:
            row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
            chunk = max(1, CHUNK_BYTES // max(row_bytes, 1))
            self._file.create_dataset(
                name,
                data=rows,
                maxshape=(None, *rows.shape[1:]),
                chunks=(chunk, *(max(1, n) for n in rows.shape[1:])),
                compression="lzf",
                shuffle=True,
                fletcher32=True,  # a flipped byte is an error, not a number
            )
            return
        data = self._file[name]
        start = len(data)
        data.resize(start + len(rows), axis=0)
        data[start:] = rows

    def append_text(self, name: str, lines: list[str]) -> None:
        """Write a list of strings (attributes are limited to 64 KiB, arrays are not)."""
        self._file.create_dataset(name, data=lines, dtype=h5py.string_dtype())

    def describe(self, attributes: Mapping[str, str | int]) -> None:
        """Set attributes of the file."""
        self._file.attrs.update(attributes)


@contextmanager
def create(
    path: Path, kind: str, version: int, verify: Callable[[Path], None] | None = None
) -> Iterator[Table]:
    """Write an HDF5 file that appears under ``path`` only when it is complete.

    It is written beside its place under a temporary name; whatever goes wrong, no part of a file
    stays behind under the final name.

    Raises:
        DataError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            yield Table(file)
            file.attrs.update({"format": kind, "version": version})
            file.attrs["complete"] = True
        if verify is not None:
            verify(partial)
        partial.replace(path)
    except OSError as err:
        raise DataError(f"{path}: cannot be written: {_reason(err)}") from None
    finally:
        with suppress(OSError):  # there is none, or no folder for it
            partial.unlink()
        with suppress(OSError):  # folders made for a file that did not come about
            for folder in made:
                folder.rmdir()


def open_complete(path: Path, kind: str, version: int) -> h5py.File:
    """Open a file of ours for reading, after checking that it is one and is whole.

    Raises:
        DataError: missing, not HDF5, of another format or version, or incomplete.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"{path}: not a readable HDF5 file: {_reason(err)}") from None
    found = file.attrs.get("format", "none")
    if found != kind:
        problem = f"is of the format {found!r}, expected {kind!r}"
    elif file.attrs.get("version") != version:
        problem = f"has the version {file.attrs.get('version')}, expected {version}"
    elif not file.attrs.get("complete", False):
        problem = "is incomplete: it was not written to its end"
    else:
        return file
    file.close()
    raise DataError(f"{path}: {problem}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into one that names it.

    Raises:
        DataError: what is read inside the block is missing or damaged.
    """
    try:
        yield
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as err:
        raise DataError(f"{path}: damaged: {_reason(err)}") from None


def _reason(err: Exception) -> str:
    return " ".join(str(err).split()).strip("'\"")
