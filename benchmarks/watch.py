"""What a command takes: seconds, seconds of the CPU, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PROGRAM = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
assert status == 0, f"{sys.argv[1:]} has ended with {os.waitstatus_to_exitcode(status)}"
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


class Taken(NamedTuple):
    """By a command, the start of Python included."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def watch(words: Sequence[str | Path], **variables: str) -> Taken:
    """Run ``jetssl WORDS``, in an environment with these variables too.

    A small process starts it: Linux counts the memory of who starts a process as that of the
    process.
    """
    jetssl = Path(sys.executable).with_name("jetssl")
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, jetssl, *words],
        stdout=subprocess.PIPE,
        env={**os.environ, **variables},
        check=True,
    )
    return Taken(*json.loads(done.stdout))
