"""Arrays of an HDF5 file, chunk by chunk: written as they grow, read by ranges of rows.

Chunks are compressed with gzip, a filter that every HDF5 library has. ISA-L compresses and
decompresses them: several times faster than zlib, and smaller than lzf. The Adler-32 sum that ends
each makes a flipped byte an error, not a number.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

CHUNK_ROWS = 8192
CHUNK_BYTES = 2**20
"""A chunk has so many rows, or fewer where it would be larger than this."""
GZIP_LEVEL = 1
GZIP_MOST = 1032
"""Bytes that one byte of gzip can become."""
FLUSHED_BYTES = 8
"""Of each chunk, ahead of the rest: at least 4, and no more than 16 (``_compressed``)."""


class Column:
    """An array that is written chunk by chunk."""

    def __init__(self, file: h5py.File, name: str, chunk_rows: int) -> None:
        self._file, self._name, self._chunk_rows = file, name, chunk_rows
        self._waiting: list[NDArray[Any]] = []
        self._type: np.dtype[Any] | None = None
        self._num_waiting = self._written = 0
        self._data: h5py.Dataset | None = None

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows; whole chunks are written, the rest waits."""
        self._waiting.append(rows)
        self._type = self._type or rows.dtype  # with what numpy forgets when it joins texts
        self._num_waiting += len(rows)
        row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
        chunk = max(1, min(self._chunk_rows, CHUNK_BYTES // max(1, row_bytes)))
        if self._num_waiting < chunk:
            return
        table = np.concatenate(self._waiting)
        whole = len(table) - len(table) % chunk
        self._write(table[:whole], chunk)
        self._waiting, self._num_waiting = [table[whole:]], len(table) - whole

    def finish(self) -> None:
        """Write the rest."""
        table = np.concatenate(self._waiting)
        self._write(table, max(1, len(table)))

    def _write(self, table: NDArray[Any], chunk: int) -> None:
        if self._data is None:
            self._data = self._file.create_dataset(
                self._name,
                (0, *table.shape[1:]),
                self._type,
                maxshape=(None, *table.shape[1:]),
                chunks=(chunk, *(max(1, n) for n in table.shape[1:])),
                compression="gzip",
                compression_opts=GZIP_LEVEL,
            )
        chunk = self._data.chunks[0]
        first, self._written = self._written, self._written + len(table)
        self._data.resize(self._written, axis=0)
        origin = (0,) * (table.ndim - 1)
        for start in range(0, len(table) if table.size else 0, chunk):
            part = np.ascontiguousarray(table[start : start + chunk])
            if len(part) < chunk:
                rest = np.zeros((chunk - len(part), *part.shape[1:]), part.dtype)
                part = np.concatenate([part, rest])
            self._data.id.write_direct_chunk((first + start, *origin), _compressed(part))


class Rows:
    """Reads ranges of rows of an array, faster than HDF5 does where ISA-L can decompress them."""

    def __init__(self, data: h5py.Dataset, kinds: str = "biuf") -> None:
        """Look at the array, and read nothing; ``kinds`` are those of numpy that it may have.

        Raises:
            ValueError: it holds something else, more than its file can hold, or a damaged chunk.
        """
        if data.dtype.kind not in kinds:
            raise ValueError(f"{data.name} holds no {'text' if kinds == 'S' else 'numbers'}")
        check_size(data)
        _check_sums(data)
        self._data = data
        self.dtype: np.dtype[Any] = data.dtype
        self.shape: tuple[int, ...] = data.shape
        self._held: tuple[int, NDArray[Any]] = (-1, np.empty(0))
        self._chunks: tuple[int, ...] | None = data.chunks if _is_gzip(data) else None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes without compression."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored(self) -> int:
        """Bytes in the file."""
        return int(self._data.id.get_storage_size())

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The rows ``start:stop``."""
        stop = len(self) if stop is None else min(stop, len(self))
        if not 0 <= start <= stop:
            raise ValueError(f"no rows {start}:{stop} among {len(self)}")
        if self._chunks is None:
            plain: NDArray[Any] = self._data[start:stop]
            return plain
        if stop - start == len(self) and self.num_bytes > GZIP_MOST * self.stored:
            raise ValueError(f"{self.stored} bytes cannot hold an array of the shape {self.shape}")
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        step = self._chunks[0]
        for first in range(start - start % step, stop, step):
            low, high = max(start, first), min(stop, first + step)
            chunk = self._chunk(first, self._chunks)
            rows[low - start : high - start] = chunk[low - first : high - first]
        return rows

    def _chunk(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """The chunk that begins with this row; the last one is held, for a range that follows."""
        if self._held[0] != first:
            uncompressed, stored = self._data.id.read_direct_chunk((first, *(0,) * len(shape[1:])))
            size = math.prod(shape) * self.dtype.itemsize
            if size > GZIP_MOST * len(stored):
                raise ValueError(f"a chunk has {len(stored)} bytes for {size}")
            raw = stored if uncompressed else isal_zlib.decompress(stored, bufsize=size)
            if len(raw) != size:
                raise ValueError(f"a chunk has {len(raw)} bytes, expected {size}")
            self._held = first, np.frombuffer(raw, self.dtype).reshape(shape)
        return self._held[1]


def check_size(data: h5py.Dataset) -> None:
    """Refuse what would take memory without end.

    Raises:
        ValueError: the bytes of the file cannot fill this shape.
    """
    most = GZIP_MOST * data.file.id.get_filesize()
    for shape in (data.shape, data.chunks or ()):
        if math.prod(shape) * data.dtype.itemsize > most:
            raise ValueError(f"{data.name} has the shape {data.shape}, more than the file can hold")


def _check_sums(data: h5py.Dataset) -> None:
    """Refuse chunks that are too short to end in HDF5's own checksum: it crashes on them."""
    if data.fletcher32:
        sizes: list[int] = []
        data.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
        if min(sizes, default=4) < 4:
            raise ValueError(f"{data.name} has a chunk of {min(sizes)} bytes, less than its sum")


def _is_gzip(data: h5py.Dataset) -> bool:
    """Whether the chunks are whole rows, compressed with gzip and nothing else."""
    if not data.chunks or data.chunks[1:] != data.shape[1:]:
        return False
    filters = data.id.get_create_plist()
    names = [filters.get_filter(index)[0] for index in range(filters.get_nfilters())]
    return names == [h5py.h5z.FILTER_DEFLATE]


def _compressed(rows: NDArray[Any]) -> bytes:
    """A zlib stream, the same for the same rows.

    At the first byte of a stream, the compressing loop of ISA-L confuses a hash of what comes with
    one of the address of the stream in memory; which repetitions are found depends on it. The loop
    leaves up to 16 bytes that are flushed to other code, and after at least 4 no byte is the first.
    """
    stream, content = isal_zlib.compressobj(GZIP_LEVEL), rows.reshape(-1).view(np.uint8)
    head: bytes = stream.compress(content[:FLUSHED_BYTES]) + stream.flush(isal_zlib.Z_SYNC_FLUSH)
    return head + stream.compress(content[FLUSHED_BYTES:]) + stream.flush()
