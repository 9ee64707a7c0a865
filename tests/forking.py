"""``jetssl`` for the tests: each command is a process, which need not import anything.

forking.py SOCKET                       serves: imports the package once, forks for each command
forking.py SOCKET as-it-is WORDS...     executes a command there, in this folder and environment
forking.py SOCKET shortened WORDS...    with the smaller numbers of ``shortened``
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = (
    "runs.pretrain", "runs.finetune", "runs.module", "scores.evaluate", "scores.export",
    "scores.plots", "scores.tasks", "data.convert", "data.merge", "data.inspect", "data.plots",
)  # fmt: skip
"""Modules that import most of what the commands need."""
LATER = ("lightning", "mlflow.store.tracking.sqlalchemy_store", "mplhep")
"""What they import when they need it."""


@contextmanager
def server(path: Path) -> Iterator[None]:
    """Let a process serve at this socket."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    serving = subprocess.Popen([sys.executable, __file__, path], env=environment)
    try:
        while not path.exists():
            assert serving.poll() is None, "the server of commands has ended"
            time.sleep(0.1)
        yield
    finally:
        serving.terminate()
        serving.wait()


def client(path: Path, how: str) -> list[str]:
    """The words that, put before those of a command, execute it there."""
    return [sys.executable, "-S", __file__, str(path), how]


def serve(path: str) -> None:
    """Execute one command after the other, until this process is ended."""
    import importlib

    for name in (*LATER, *(f"jetssl_cli.{name}" for name in HEAVY)):
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{path}.new")
        door.listen()
        Path(f"{path}.new").rename(path)
        while True:
            line, _ = door.accept()
            with line:
                _, files, _, _ = socket.recv_fds(line, 1, 3)
                asked = json.loads(line.makefile("rb").read())
                child = os.fork()
                if child == 0:
                    execute(files, **asked)
                for file in files:
                    os.close(file)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                line.sendall(str(code).encode())


def execute(
    files: list[int], folder: str, environment: dict[str, str], how: str, words: list[str]
) -> None:
    """Be the command, and end."""
    from shortened import shortened

    from jetssl_cli.cli.main import main

    code: object = 1
    try:
        for place, file in enumerate(files):
            os.dup2(file, place)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["jetssl", *(shortened(words) if how == "shortened" else words)]
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def ask(path: str, how: str, words: list[str]) -> int:
    """The exit code of a command that the server executes."""
    place = {"folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    asked = {**place, "how": how, "words": words}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        socket.send_fds(line, [b"!"], [0, 1, 2])
        line.sendall(json.dumps(asked).encode())
        line.shutdown(socket.SHUT_WR)
        code = int(line.recv(16) or b"1")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(ask(sys.argv[1], sys.argv[2], sys.argv[3:]))
