"""A run folder belongs to one training at a time."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from jetssl_cli.errors import RunError
from jetssl_cli.runs import lock
from jetssl_cli.runs.lock import NAME, locked

HOLD = """
import sys
from pathlib import Path
from jetssl_cli.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_folder_is_held_and_released(tmp_path):
    folder = tmp_path / "a" / "run"
    mine = pytest.raises(RunError, match=rf"process {os.getpid()} on")
    with locked(folder), mine, locked(folder):
        pass
    assert not list(folder.iterdir())
    with locked(folder):
        pass


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    with hold(tmp_path) as other:
        theirs = f"process {other.pid} on {socket.gethostname()}"
        with pytest.raises(RunError, match=theirs), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        assert (tmp_path / NAME).exists()
        with locked(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_it_can_be_handed_over_to_one_that_lives_longer(tmp_path):
    code = HOLD.replace("])):", "])) as hand_over:\n    hand_over(int(sys.argv[2]))")
    heir = subprocess.Popen(["sleep", "600"])
    words = [sys.executable, "-c", code, str(tmp_path), str(heir.pid)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"held\n"
        owner.kill()
        owner.wait()
    with pytest.raises(RunError, match=f"process {heir.pid} on"), locked(tmp_path):
        pass
    heir.kill()
    heir.wait()
    with locked(tmp_path) as hand_over:
        hand_over(heir.pid)  # released by the one that held it, all the same
    assert not list(tmp_path.iterdir())


def test_a_lock_says_whose_it_is_from_the_first_moment(tmp_path):
    """Or a run killed in the next moment could not go on for five minutes."""
    seen, ended = set(), threading.Event()

    def look():
        while not ended.is_set():
            with suppress(FileNotFoundError):
                seen.add((tmp_path / NAME).read_text() != "")

    watcher = threading.Thread(target=look)
    watcher.start()
    deadline = time.monotonic() + 60
    for number in itertools.count():
        if (number >= 300 and seen) or time.monotonic() > deadline:
            break
        with locked(tmp_path):
            pass
    ended.set()
    watcher.join()
    assert seen == {True}


@pytest.mark.parametrize("held", [False, True])
def test_a_file_system_without_links(tmp_path, monkeypatch, held):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(lock.os, "link", refuse)
    process = hold(tmp_path) if held else None
    if process:
        with pytest.raises(RunError, match="is running here"), locked(tmp_path):
            pass
        process.kill()
        process.communicate()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_was_made_though_the_server_lost_its_answer(tmp_path, monkeypatch):
    link = os.link

    def lose(*paths):
        link(*paths)
        raise FileExistsError

    monkeypatch.setattr(lock.os, "link", lose)
    with locked(tmp_path):
        assert (tmp_path / NAME).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("silent", [60, 600])
def test_an_owner_elsewhere_counts_as_gone_when_it_is_silent(tmp_path, silent):
    path = tmp_path / NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "id": "x"}))
    then = time.time() - silent
    os.utime(path, (then, then))
    if silent > lock.SECONDS_UNTIL_STALE:
        with locked(tmp_path):
            pass
    else:
        theirs = "process 1 on elsewhere, last seen 6"
        with pytest.raises(RunError, match=theirs), locked(tmp_path):
            pass


def test_the_owner_is_seen_to_live(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_TOUCHES", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / NAME, (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / NAME).stat().st_mtime < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 10


def test_a_touch_that_comes_late_makes_no_lock(tmp_path, monkeypatch):
    ended, answers = threading.Event(), iter([False, True])
    monkeypatch.setattr(ended, "wait", lambda _: next(answers))
    lock._touch(tmp_path / NAME, "mine", ended)
    assert not list(tmp_path.iterdir())


def leave_behind(folder, name=NAME):
    """The lock of a process that was killed."""
    owner = {"host": socket.gethostname(), "pid": 2**30, "started": "1"}
    (folder / name).write_text(json.dumps(owner))


def test_who_removes_a_lock_may_be_killed(tmp_path):
    leave_behind(tmp_path)
    leave_behind(tmp_path, f"{NAME}.old")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def _many_switches():
    """Of threads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_many_switches")
def test_of_those_that_find_a_lock_left_behind_one_gets_it(tmp_path):
    """A hundred times: the slower of two must not remove what the quicker has made."""

    def take(begun, tried, held):
        begun.wait()
        with suppress(RunError), locked(tmp_path):
            held.append(threading.get_ident())
            tried.wait()
            return
        tried.wait()

    for _ in range(100):
        leave_behind(tmp_path)
        begun, tried, held = threading.Barrier(4), threading.Barrier(4), []
        threads = [threading.Thread(target=take, args=(begun, tried, held)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) == 1
        assert not list(tmp_path.iterdir())


def test_of_many_processes_one_gets_it(tmp_path):
    """All at once, over a lock that was left behind."""
    leave_behind(tmp_path)
    start = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(start, text=True, **pipes) for _ in range(3)]
    deadline = time.monotonic() + 200
    while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        process.stdin.close()
    said = [process.stdout.read() for process in processes]
    assert sorted(said) == ["", "", "held\n"]
    for process in processes:
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    told = "run: cannot be written: Not a directory$"
    with pytest.raises(RunError, match=told), locked(tmp_path / "file" / "run"):
        pass
