"""Data files that must stay what they were, as long as a run reads them and when it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jetssl_cli.data.facts import Seen, seen
from jetssl_cli.data.sample import Sample
from jetssl_cli.errors import DataError, reason


class Watch:
    """Some files, known by their jets rather than by their names and dates."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Look at the files.

        Raises:
            DataError: one cannot be read, or holds no jets.
        """
        self._files = tuple(files)
        self._seen = [_seen(path) for path in files]
        self.fingerprints = tuple(Sample((path,)).fingerprint for path in files)

    def check(self, file: int) -> None:
        """Check that a file is what it was, which takes no time unless somebody has touched it.

        Raises:
            DataError: it holds other jets, is cut short, or is gone.
        """
        path = self._files[file]
        now = _seen(path)
        if now == self._seen[file]:
            return
        try:
            found = Sample((path,)).fingerprint
        except DataError as err:
            raise DataError(f"{err}; it was changed while the run reads it") from None
        if found != self.fingerprints[file]:
            raise DataError(f"{path}: was changed while the run reads it: it holds other jets")
        self._seen[file] = now


def _seen(path: Path) -> Seen:
    try:
        return seen(path)
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {reason(err)}") from None
