"""HDF5 files that are whole or absent: named arrays, text, and attributes under a seal.

What HDF5 itself keeps about the arrays has checksums since its format of 1.10, and their chunks end
in one. Text has a fixed length: text of any length would lie in a heap without a checksum, in which
HDF5 searches without end once it is damaged.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from jetssl_cli.data.chunks import CHUNK_ROWS, Column, Rows, check_size
from jetssl_cli.data.kinds import kind_of
from jetssl_cli.data.place import appearing, in_folder_of
from jetssl_cli.errors import DataError, printable, reason

LAYOUT = ("v110", "v110")
"""Oldest and newest HDF5 whose format is written: the oldest with checksums."""
SEAL = "attributes_hash"
"""Attribute with a hash of all others: chunks end in a checksum, attributes do not."""

ISAL_ERROR: type[Exception] = vars(isal_zlib)["error"]  # its stub has it as an instance
DAMAGE = (
    OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, ISAL_ERROR,
)  # fmt: skip
"""What reading a damaged file may raise."""


class Table:
    """Named arrays in an open HDF5 file, each of which grows along its first axis."""

    def __init__(self, file: h5py.File, check: Callable[[], None]) -> None:
        """``check`` raises OSError where a write has failed."""
        self._file, self._check = file, check
        self._columns: dict[str, Column] = {}

    def append(self, name: str, rows: NDArray[Any], chunk_rows: int = CHUNK_ROWS) -> None:
        """Add rows to the array ``name``.

        The first call fixes its type, its other axes, and the rows of a chunk.
        """
        if name not in self._columns:
            self._columns[name] = Column(self._file, name, chunk_rows)
        self._columns[name].append(rows)
        self._check()

    def append_text(self, name: str, lines: list[str]) -> None:
        """Write a list of strings (attributes are limited to 64 KiB, arrays are not)."""
        texts = [line.encode() for line in lines]
        self.append(name, np.array(texts, _text_type(texts)))

    def describe(self, attributes: Mapping[str, str | int]) -> None:
        """Set attributes of the file."""
        for name, value in attributes.items():
            if isinstance(value, str):
                text = value.encode()
                self._file.attrs.create(name, text, dtype=_text_type([text]))
            else:
                self._file.attrs[name] = value

    def finish(self) -> None:
        """Write what is still held back of each array."""
        for column in self._columns.values():
            column.finish()


def _text_type(texts: list[bytes]) -> np.dtype[Any]:
    """The type of UTF-8 strings as long as the longest of these."""
    kind: np.dtype[Any] = h5py.string_dtype(length=max([1, *map(len, texts)]))
    return kind


def read_texts(data: h5py.Dataset) -> list[str]:
    """A list of strings, as ``Table.append_text`` writes it.

    Raises:
        ValueError: it is longer than its file can hold, or not UTF-8.
    """
    if data.dtype.kind == "S":
        return [line.decode() for line in Rows(data, "S").read().tolist()]
    check_size(data)
    return [str(line) for line in data.asstr()[:]]  # of any length, as older files have it


class _Disk(io.FileIO):
    """A file whose failing writes are remembered: HDF5 crashes where it cannot write.

    Where an interrupt comes between two calls of HDF5, it writes to a file that is closed already.
    """

    error: OSError | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset if self.closed else super().seek(offset, whence)

    def flush(self) -> None:
        if not self.closed:
            super().flush()

    def write(self, data: Any) -> int:
        if self.error is None and not self.closed:
            try:
                done = 0
                while done < len(data):
                    done += super().write(memoryview(data)[done:]) or 0
            except OSError as err:
                self.error = err
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        if self.closed:
            return size or 0
        try:
            return super().truncate(size)
        except OSError as err:
            self.error = self.error or err
            return size or 0

    def check(self) -> None:
        """Raise what was remembered."""
        if self.error is not None:
            raise self.error


@contextmanager
def create(
    path: Path, kind: str, version: int, verify: Callable[[Path], None] | None = None
) -> Iterator[Table]:
    """Write an HDF5 file that appears under ``path`` only when it is complete.

    ``verify`` is given the complete file before it appears, and may refuse it.

    Raises:
        DataError: the file cannot be written.
    """
    with appearing(path) as partial:
        with in_folder_of(path, lambda: _Disk(partial, "w+")) as disk:
            with h5py.File(disk, "w", libver=LAYOUT) as file:
                table = Table(file, disk.check)
                yield table
                table.finish()
                table.describe({"format": kind, "version": version})
                table.describe({SEAL: _hash(attributes_of(file))})
                file.attrs["complete"] = True
            disk.check()
        if verify is not None:
            verify(partial)


def open_complete(path: Path, kind: str, version: int) -> h5py.File:
    """Open a file of ours for reading, after checking that it is one and is whole.

    Raises:
        DataError: missing, not HDF5, of another format or version, incomplete, or with parts in
            other files.
    """
    file = open_foreign(path)
    try:
        with readable(path):
            problem = _problem(file, kind, version)
        if problem is not None:
            raise DataError(f"{path}: {problem}")
    except DataError:
        file.close()
        raise
    return file


def _problem(file: h5py.File, kind: str, version: int) -> str | None:
    """Why a file is not a whole one of ours, if it is not."""
    about = attributes_of(file)
    if "format" not in about:
        return "is no file of jetssl; data are made by jetssl convert"
    found, number = str(about["format"]), str(about.get("version"))
    if found != kind:
        return f"is of the format {found!r}, expected {kind!r}"
    if number != str(version):
        return f"has the version {printable(number)}, expected {version}"
    if str(about.get("complete")) not in ("True", "1"):
        return "is incomplete: it was not written to its end"
    stranger = _stranger(file)
    return stranger and f"{stranger} is a link or lies in another file; neither is followed"


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """The attributes of an open file, text as ``str``.

    Raises:
        ValueError: text is not UTF-8.
    """
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in file.attrs.items()
    }


def check_attributes(path: Path, found: Mapping[str, Any]) -> None:
    """Check that the attributes of a file are those that were written, where it keeps their hash.

    Raises:
        DataError: they are not.
    """
    if found.get(SEAL, _hash(found)) != _hash(found):
        raise DataError(f"{path}: damaged: its attributes are not those that were written")


def _hash(found: Mapping[str, Any]) -> str:
    told = [
        f"{name}: {value}\n"
        for name, value in sorted(found.items())
        if name not in (SEAL, "complete")
    ]
    return hashlib.sha256("".join(told).encode()).hexdigest()


def _stranger(group: h5py.Group) -> str | None:
    """A part of a file whose content HDF5 would look for in another one, if there is such a part.

    Those are links, arrays with external storage, and virtual arrays.
    """
    for name in group:
        item = None
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            item = group.get(name)
        if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
            return f"{group.name.rstrip('/')}/{name}"
        if isinstance(item, h5py.Group) and (found := _stranger(item)) is not None:
            return found
    return None


def open_foreign(path: Path) -> h5py.File:
    """Open any HDF5 file for reading.

    Raises:
        DataError: missing, or not HDF5.
    """
    if (kind := kind_of(path)) in ("ROOT", "parquet"):
        raise DataError(f"{path}: is a {kind} file; jetssl convert makes a jagged HDF5 file of it")
    try:
        return h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"{path}: not a readable HDF5 file: {reason(err)}") from None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into one that names it.

    Raises:
        DataError: what is read inside the block is missing or damaged.
    """
    try:
        yield
    except DAMAGE as err:
        raise DataError(f"{path}: damaged: {reason(err)}") from None
