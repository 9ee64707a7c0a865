"""What was found out about data files, kept beside them: one JSON file in each folder.

It saves time and nothing else: where none can be written, or what lies there is damaged, the work
is done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from jetssl_cli.data.cache import digest, put

FACTS = ".fingerprints.json"
"""File of each folder of data files with what is known of them."""
FACTS_VERSION = 1
"""Counted up when the same file tells something else."""
SECONDS_UNTOUCHED = 10.0
"""Nothing is remembered of a file that was touched later: changed again, it could keep its date.

Some file systems count two seconds at a time, and the clocks of machines differ."""

Seen = tuple[int, int, int, int]
"""Size, times of the last change (of its content, of anything), number on the disk of a file."""
Known = dict[str, tuple[Seen, dict[str, list[str]]]]
"""Name of a file -> how it was seen, and its facts by name."""


def seen(path: Path) -> Seen:
    """What tells without reading a file that nobody has touched it.

    Raises:
        OSError: it is not there.
    """
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def known(path: Path, fact: str, find: Callable[[], list[str]]) -> list[str]:
    """What ``find`` tells of a file: found once, and anew when the file was touched.

    Args:
        path: of the file.
        fact: name of what is found, with all that it depends on beside the file.
        find: reads the file.
    """
    try:
        now, found = time.time(), seen(path)
    except OSError:
        return find()  # which tells why
    files, name = _memory(path.absolute().parent), path.name
    facts = files[name][1] if name in files and files[name][0] == found else {}
    if fact in facts:
        return facts[fact]
    value = find()
    if now - max(found[1:3]) / 1e9 >= SECONDS_UNTOUCHED:
        files[name] = found, {**facts, fact: value}
    return value


def keep_known(files: Iterable[Path]) -> None:
    """Write down what is known of files, beside them, for the processes to come.

    What was known there of other files stays as long as they do.
    """
    for folder in {path.absolute().parent for path in files}:
        ours, theirs = _memory(folder), _remembered(folder)
        if any(theirs.get(name) != facts for name, facts in ours.items()):
            both = [*theirs.items(), *ours.items()]
            still = {name: facts for name, facts in both if _is(folder / name, facts[0])}
            put(folder / FACTS, written(still))


@cache
def _memory(folder: Path) -> Known:
    """What this process knows of the files of a folder; at first, what is written down there."""
    return _remembered(folder)


def _remembered(folder: Path) -> Known:
    """What is written down of the files of a folder; nothing if it is absent or damaged."""
    try:
        content = (folder / FACTS).read_bytes()
        files = TypeAdapter(Known).validate_python(json.loads(content)["files"])
        return files if written(files) == content else {}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return {}


def written(files: Known) -> bytes:
    """What is known of the files of a folder, as it is kept there."""
    content = digest(FACTS_VERSION, json.dumps(files))
    return json.dumps({"version": FACTS_VERSION, "content": content, "files": files}).encode()


def _is(path: Path, found: Seen) -> bool:
    try:
        return seen(path) == found
    except OSError:
        return False
