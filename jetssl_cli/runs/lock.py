"""A run folder belongs to one training at a time, on any machine that sees it.

The lock is a file that only one process can create, also over a network, and that says whose it is
from the moment when it is there. Its owner touches it every half minute. It counts as left behind
when the owner ran on this machine and is gone, or when it was not touched for five minutes, by the
clock of the file system.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jetssl_cli.errors import RunError, reason

NAME = ".lock"
SECONDS_BETWEEN_TOUCHES = 30.0
SECONDS_UNTIL_STALE = 300.0


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[int], None]]:
    """Hold a folder, which is made if it is not there, while the block runs.

    Yields a function that names another process of this machine as the owner: one that would go on
    if this one were killed.

    Raises:
        RunError: another training holds it; or it cannot be written.
    """
    path, name = folder / NAME, uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(path, _claim(os.getpid(), name))
    except OSError as err:
        raise RunError(f"{folder}: cannot be written: {reason(err)}") from None
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, name, ended), daemon=True, name="lock").start()
    try:
        yield lambda pid: _hand_over(path, _claim(pid, name))
    finally:
        ended.set()
        if _owner(path).get("id") == name:
            path.unlink(missing_ok=True)


def _take(path: Path, text: str) -> None:
    """Make a lock that says this; one that was left behind is removed under a lock of its own.

    Or of two that have seen the same old one, the slower would remove what the quicker has made.

    Raises:
        RunError: another process holds it.
    """
    while not _create(path, text):
        if not _is_stale(path):
            continue
        removing = path.with_name(f"{path.name}.old")
        _take(removing, text)
        try:
            if _is_stale(path):
                path.unlink(missing_ok=True)
        finally:
            removing.unlink()


def _is_stale(path: Path) -> bool:
    """Whether there is a lock that was left behind.

    Raises:
        RunError: there is one that was not.
    """
    try:
        owner, age = _owner(path), _now(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return False
    here = owner.get("host") == socket.gethostname()
    if here and owner.get("started") != _started(int(str(owner.get("pid", 0)))):
        return True
    if age > SECONDS_UNTIL_STALE:
        return True
    raise RunError(
        f"{path.parent}: a training is running here (process {owner.get('pid')} on "
        f"{owner.get('host')}, last seen {max(age, 0):.0f} s ago)"
    )


def _claim(pid: int, name: str) -> str:
    """What a lock says of its owner."""
    owner = {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "id": name}
    return json.dumps(owner)


def _hand_over(path: Path, text: str) -> None:
    """Change the owner; where that cannot be written, it stays as it is."""
    draft = path.with_name(f"{NAME}.{uuid.uuid4().hex}")
    with suppress(OSError):
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    """Whether the lock was free, and is ours now."""
    draft = path.with_name(f"{NAME}.{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8")
        return _link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _link(draft: Path, path: Path) -> bool:
    try:
        os.link(draft, path)
    except OSError as err:
        if draft.stat().st_nlink > 1:  # it was made, and the answer got lost
            return True
        if isinstance(err, FileExistsError):
            return False
        return _create_by_name(path, draft.read_text(encoding="utf-8"))
    return True


def _create_by_name(path: Path, text: str) -> bool:
    """The same without links: for a moment, the lock does not say whose it is."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _owner(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _started(pid: int) -> str:
    """When a process of this machine began, as the system counts; nothing if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _now(folder: Path) -> float:
    """The time, by the clock of the file system."""
    probe = folder / f"{NAME}.{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _touch(path: Path, name: str, ended: threading.Event) -> None:
    """Show that the owner lives; a lock that was released meanwhile is not made again."""
    while not ended.wait(SECONDS_BETWEEN_TOUCHES):
        with suppress(OSError):
            if _owner(path).get("id") == name:
                os.utime(path)
