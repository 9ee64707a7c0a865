"""How the processes of a run start and end together.

torchrun or srun starts them, or else the first one starts the others of its machine and hands them
the resolved config; they find themselves in the environment that torchrun would make. A process
that fails ends them all.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from rich.console import Console
from torch import distributed

from jetssl_cli.config import Strict, to_yaml
from jetssl_cli.errors import JetSSLError, RunError
from jetssl_cli.runs.processes import Place

END_OF_CONFIG = "...\n"
"""Ends the config that a started process reads from its input, which then stays open."""
SECONDS_TO_FAIL = 10.0
"""After this a process that waits for one that has failed is ended by force."""
SECONDS_TO_END = 60.0
"""The others have so long to end after the first one has."""
FAILED = 2
"""Exit code, that of every mistake that is told."""
SHOWN = 2000
"""Characters shown of what a failed process has written."""


@contextmanager
def together(cfg: Strict, place: Place, failed: Callable[[], None]) -> Iterator[None]:
    """Let the processes of a run work in the block, and end together.

    Args:
        cfg: of the run, for processes that are started here.
        place: of this process.
        failed: called before this process is ended by force, because another one has failed and
            this one waits for it.

    Raises:
        RunError: another process has failed; says why.
    """
    started = _Started(cfg, place.ranks, failed) if place.ranks > 1 and not place.starter else None
    try:
        yield
        if started:
            started.wait()
    except (JetSSLError, KeyboardInterrupt):
        raise
    except Exception as err:
        if started and (reason := started.failure(SECONDS_TO_FAIL)):
            raise RunError(reason) from err
        raise
    finally:
        if started:
            started.close()
        if place.ranks > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


class _Started:
    """The other processes of this machine."""

    def __init__(self, cfg: Strict, ranks: int, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._ended = threading.Event()
        self._before = dict(os.environ)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "jetssl",
            "RANK": "0",
            "LOCAL_RANK": "0",
        }
        self._said: list[IO[str]] = []
        self._processes = [self._start(cfg, rank) for rank in range(1, ranks)]
        threading.Thread(target=self._watch, daemon=True, name="processes").start()

    def _start(self, cfg: Strict, rank: int) -> subprocess.Popen[str]:
        said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._said.append(said)
        process = subprocess.Popen(
            [sys.executable, "-m", "jetssl_cli.runs.process"],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            text=True,
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed already, which is told later
            process.stdin.write(to_yaml(cfg) + END_OF_CONFIG)
            process.stdin.flush()
        return process

    def wait(self) -> None:
        """Wait until the others have come to their end.

        Raises:
            RunError: one has not.
        """
        if reason := self.failure(SECONDS_TO_END):
            raise RunError(reason)

    def failure(self, timeout: float) -> str | None:
        """Why one of the processes has failed, if one does within so many seconds."""
        for _ in range(int(timeout * 10)):
            codes = [process.poll() for process in self._processes]
            for rank, code in enumerate(codes, start=1):
                if code:
                    return f"process {rank} of the run failed: {self._reason(rank)}"
            if all(code == 0 for code in codes):
                return None
            self._ended.wait(0.1)
        return None

    def close(self) -> None:
        """End what is left of them."""
        self._ended.set()
        for process, said in zip(self._processes, self._said, strict=True):
            process.kill()
            process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            said.close()
        os.environ.clear()
        os.environ |= self._before

    def _reason(self, rank: int) -> str:
        said = self._said[rank - 1]
        said.seek(0)
        text = said.read().strip()
        _, told, reason = text.rpartition("error: ")
        return reason if told else text[-SHOWN:] or "it was killed"

    def _watch(self) -> None:
        """End this process if another one has failed, and this one does not hear of it."""
        while not self._ended.wait(0.5):
            if any(process.poll() for process in self._processes):
                if self._ended.wait(SECONDS_TO_FAIL):
                    return
                reason = self.failure(1.0)
                Console(stderr=True).print(
                    f"error: {reason}", style="red", highlight=False, markup=False, soft_wrap=True
                )
                self._failed()
                for process in self._processes:
                    process.kill()
                os._exit(FAILED)
