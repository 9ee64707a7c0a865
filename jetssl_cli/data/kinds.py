"""Of which kind a file is, by how it begins: its name may say anything."""

from __future__ import annotations

from pathlib import Path

from jetssl_cli.errors import DataError, reason

BEGINNINGS = {"ROOT": b"root", "parquet": b"PAR1", "HDF5": b"\x89HDF\r\n\x1a\n"}


def kind_of(path: Path) -> str | None:
    """A name of ``BEGINNINGS``, or None where the file begins in another way.

    Raises:
        DataError: no such file, a folder, or a file that cannot be read or is empty.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, a file is needed")
    try:
        with path.open("rb") as file:
            begin = file.read(max(map(len, BEGINNINGS.values())))
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {reason(err)}") from None
    if not begin:
        raise DataError(f"{path}: is empty")
    return next((kind for kind, sign in BEGINNINGS.items() if begin.startswith(sign)), None)
