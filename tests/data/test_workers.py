"""Processes that share work, when one of them is killed or the work is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from tests.data.test_workers import work
from jetssl_cli.data.workers import share
if __name__ == "__main__":
    tasks = [(role, *sys.argv[1:3]) for role in ("idle", "longer")]
    list(share(work, tasks, 2, doing="waiting", broken=sys.argv[3]))
"""
TRAININGS = """
import sys
from tests.data.test_workers import train
from jetssl_cli.data.workers import share
if __name__ == "__main__":
    tasks = [(sys.argv[1], seconds) for seconds in (0, 2)]
    list(share(train, tasks, 2, doing="waiting", broken="stopped"))
"""
INTERRUPTED = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from jetssl_cli.data.workers import share
def begun(*words):
    found = submit(*words)
    os.kill(os.getpid(), int(sys.argv[1]))
    return found
submit, ProcessPoolExecutor.submit = ProcessPoolExecutor.submit, begun
if __name__ == "__main__":
    for _ in share(time.sleep, [0.1] * 2, 2, doing="waiting", broken=sys.argv[2]):
        print("done", flush=True)
"""


def work(task: tuple[str, str, str]) -> None:
    """The idle one then waits for another task; the longer one does what is asked, and goes on."""
    role, folder, happens = task
    written = Path(folder, "number")
    if role == "idle":
        written.with_suffix(".partial").write_text(str(os.getpid()))
        written.with_suffix(".partial").rename(written)
        return
    asked = []
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    while not written.exists():
        time.sleep(0.01)
    time.sleep(0.5)
    if happens == "killed":
        os.kill(int(written.read_text()), signal.SIGKILL)
    else:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1)
    Path(folder, "end").write_text("asked to stop" if asked else "not asked")


def train(task: tuple[str, int]) -> None:
    """Once both have begun the work is interrupted; one takes longer to stop than the other."""
    folder, seconds = Path(task[0]), task[1]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    (folder / f"begun {seconds}").touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    if seconds:
        os.kill(os.getppid(), signal.SIGINT)
    while not asked:
        time.sleep(0.01)
    time.sleep(seconds)
    (folder / f"asked {seconds}").write_text(str(len(asked)))


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("broken", ["finished", "stopped"])
@pytest.mark.parametrize("happens", ["killed", "interrupted"])
def test_who_is_killed_while_it_waits_takes_the_lock_of_the_tasks_along(tmp_path, broken, happens):
    """Where the work is interrupted, the one that waits is killed by the SIGTERM to all."""
    done = run(PROGRAM, str(tmp_path), happens, broken)
    if happens == "killed":
        assert done.returncode == 1
        assert "DataError: a waiting process was killed" in done.stderr
    else:
        assert done.returncode == -signal.SIGINT
    asked = {"finished": "not asked", "stopped": "asked to stop"}
    assert (tmp_path / "end").read_text() == asked[broken]


@pytest.mark.parametrize(
    ("number", "broken"),
    [(signal.SIGINT, "finished"), (signal.SIGINT, "stopped"), (signal.SIGTERM, "finished")],
)
def test_a_signal_that_comes_while_the_processes_begin_is_not_lost(number, broken):
    done = run(INTERRUPTED, str(int(number)), broken)
    assert (done.returncode, done.stdout) == (-number, ""), done.stderr


def test_who_takes_longer_to_stop_is_asked_once(tmp_path):
    """Afterwards a SIGTERM would end it anywhere."""
    done = run(TRAININGS, str(tmp_path))
    assert done.returncode == -signal.SIGINT, done.stderr
    assert [(tmp_path / f"asked {seconds}").read_text() for seconds in (0, 2)] == ["1", "1"]
