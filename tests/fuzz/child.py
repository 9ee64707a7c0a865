"""A process of its own that executes inputs: HDF5 can crash, and a crash has to be seen.

Started as ``python child.py TARGET FOLDER``; for each line on its input it executes the file of the
target in that folder, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import resource
import select
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

MEMORY = 256 * 2**20
"""Bytes that one input may take: more than 1,032 (what gzip can reach) times the largest input."""
SECONDS = 20.0
"""That one input may take."""
READY = "ready\n"
START = 300.0
"""Seconds that the process may take to begin."""


@dataclass(frozen=True)
class Answer:
    """What came of an input."""

    finding: str = ""
    """What broke the rule; empty where nothing did."""
    outcome: str = ""


class Child:
    """The process, started again where an input has ended it; a context manager."""

    def __init__(
        self,
        name: str,
        folder: Path,
        file: str,
        *,
        seconds: float = SECONDS,
        program: Path = Path(__file__),
    ) -> None:
        self._words = [sys.executable, str(program), name, str(folder)]
        self._path, self._seconds = folder / file, seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, content: bytes) -> Answer:
        """Execute one input."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            if self._line(START) != READY:
                raise TimeoutError(f"the process was not ready after {START:g} s")
        self._path.write_bytes(content)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._line(self._seconds)
        if line is None:
            self._end()
            return Answer(f"hang: more than {self._seconds:g} s")
        if not line:
            code = self._process.wait()
            self._end()
            return Answer(f"crash: the process ended with {code}")
        return Answer(**json.loads(line))

    def _line(self, seconds: float) -> str | None:
        """The next line; empty at the end of the process, None where there is none in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise ValueError(key)


def main() -> None:
    """Answer until the input ends."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz.targets import TARGETS, seeds

    target = TARGETS[sys.argv[1]]
    path = Path(sys.argv[2]) / target.file
    for content in seeds(sys.argv[1]):  # what is imported and held from then on is not counted
        path.write_bytes(content)
        target.run(path)
    limit = _memory("VmSize") + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    highest = _memory("VmHWM")
    print(READY, end="", flush=True)
    for _ in sys.stdin:
        answer: dict[str, str]
        try:
            answer = {"outcome": target.run(path)}
        except BaseException as err:
            frames = [
                f"{Path(f.filename).name}:{f.lineno}"
                for f in traceback.extract_tb(err.__traceback__)
            ]
            answer = {
                "finding": f"{type(err).__name__} at {' '.join(frames[-4:])}: {str(err)[:300]}"
            }
        if (now := _memory("VmHWM")) > highest + MEMORY:
            answer = {"finding": f"memory: {(now - highest) / 2**20:.0f} MiB, {answer}"}
        highest = max(now, highest)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
