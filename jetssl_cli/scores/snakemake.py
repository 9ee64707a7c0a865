"""How Snakemake is called, and how signals reach it and all its jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from jetssl_cli.config import shipped
from jetssl_cli.runs.signals import Stopped
from jetssl_cli.scores.workflow_config import WorkflowConfig

PROFILES = ("local", "slurm")
STDERR = 2
"""Where all that Snakemake says goes: standard output is for the report."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]


def command(cfg: WorkflowConfig, folder: Path, config: Path) -> list[str]:
    """The command of Snakemake."""
    home = shipped("workflow")
    profile = home / "profiles" / cfg.profile if cfg.profile in PROFILES else Path(cfg.profile)
    words: list[object] = [sys.executable, "-m", "snakemake", "--snakefile", home / "Snakefile"]
    words += ["--directory", folder, "--configfile", config, "--profile", profile.resolve()]
    words += ["--rerun-triggers", "mtime", "input", "--rerun-incomplete", "--keep-going"]
    words += ["--quiet", "host", "reason", "--show-failed-logs"]
    if cfg.jobs is not None:
        words += ["--cores" if cfg.profile == "local" else "--jobs", cfg.jobs]
    if cfg.container is not None:
        words += ["--software-deployment-method", "apptainer"]
        words += [f"--apptainer-args={cfg.container_args}"] * bool(cfg.container_args)
    words.append("--nolock")  # the folder has a lock of its own
    return [*map(str, words), *cfg.snakemake]


def run(command: Sequence[str], out: Path, hand_over: Callable[[int], None]) -> int:
    """Run Snakemake and all its jobs; signals that come go on to all of them.

    The folder is handed over to Snakemake, which goes on alone should this process be killed.

    Raises:
        Stopped: one has come.
    """
    came: list[int] = []
    running: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        came.append(number)
        for group in running:
            _interrupt(group)

    with (
        _handling(pass_on),
        subprocess.Popen(command, stdout=STDERR, start_new_session=True) as process,
    ):
        running.append(process.pid)
        hand_over(process.pid)
        if came:
            _interrupt(process.pid)
        code = process.wait()
    if came and code:
        name = signal.Signals(came[0]).name
        told = f"{out}: stopped by {name}; the same command goes on with it"
        raise Stopped(told, came[0])
    return code


def _interrupt(group: int) -> None:
    """Do what Ctrl-C on a terminal does: Snakemake waits for its jobs, which write snapshots."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGINT)


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    """Handle signals while the block runs.

    Those that are ignored (by nohup, or in the background of a script) still are, but not by the
    processes that are started here, which could not be interrupted otherwise.
    """
    here = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    before = {number: signal.getsignal(number) for number in SIGNALS if here}
    for number, old in before.items():
        signal.signal(number, _ignore if old is signal.SIG_IGN else handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Unlike SIG_IGN, not inherited."""
