"""Processes that share work, when one of them is killed."""

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
    tasks = [(role, sys.argv[1]) for role in ("idle", "longer")]
    list(share(work, tasks, 2, doing="waiting", broken=sys.argv[2]))
"""


def work(task: tuple[str, str]) -> None:
    """The idle one then waits for another task; the longer one kills it, and goes on."""
    role, folder = task
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
    os.kill(int(written.read_text()), signal.SIGKILL)
    time.sleep(1)
    Path(folder, "end").write_text(f"{asked}")


@pytest.mark.parametrize("broken", ["finished", "stopped"])
def test_who_is_killed_while_it_waits_takes_the_lock_of_the_tasks_along(tmp_path, broken):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), broken],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "DataError: a waiting process was killed" in done.stderr
    asked = [] if broken == "finished" else [int(signal.SIGTERM)]
    assert (tmp_path / "end").read_text() == f"{asked}"
