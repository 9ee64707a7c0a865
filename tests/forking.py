"""``jetssl`` for the tests of the pages: each command is a process, which need not import anything.

forking.py SOCKET           serves: imports the package once, and forks for each command
forking.py SOCKET typed WORDS...    executes a command there, in this folder and environment
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback

HEAVY = (
    "runs.pretrain", "runs.finetune", "runs.module", "scores.evaluate", "scores.export",
    "scores.plots", "scores.tasks", "data.convert", "data.merge", "data.inspect", "data.plots",
)  # fmt: skip
"""Modules that import most of what the commands need."""


def serve(path: str) -> None:
    """Execute one command after the other, until this process is ended."""
    import importlib

    import lightning  # noqa: F401

    for name in HEAVY:
        importlib.import_module(f"jetssl_cli.{name}")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
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


def execute(files: list[int], folder: str, environment: dict[str, str], words: list[str]) -> None:
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
        sys.argv = ["jetssl", *shortened(words)]
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


def ask(path: str, words: list[str]) -> int:
    """The exit code of a command that the server executes."""
    asked = {"folder": os.getcwd(), "environment": dict(os.environ), "words": words}  # noqa: PTH109
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
    sys.exit(ask(sys.argv[1], sys.argv[3:]))
