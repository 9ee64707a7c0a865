"""Processes that share work: what they do with interrupts, and when one is killed; their memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Literal, TypeVar

from jetssl_cli.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
Broken = Literal["finished", "stopped"]
"""What becomes of tasks that are under way when the work is broken off: they come to their end, or
get a SIGTERM, which trainings understand and which ends others anywhere."""


def share(
    work: Callable[[T], R],
    tasks: Sequence[T],
    jobs: int,
    *,
    doing: str,
    broken: Broken = "finished",
) -> Iterator[tuple[T, R]]:
    """Do every task, in ``jobs`` processes, or in this one; yield results as they come.

    Interrupted, or where a task fails, no others are begun. The processes end with this one.

    Args:
        work: a function of a module, which other processes can import.
        tasks: its arguments.
        jobs: number of processes.
        doing: what a process does, for the message when one is killed, such as "converting".
        broken: what becomes of those under way.

    Raises:
        DataError: a process was killed.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from ((task, work(task)) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # h5py and uproot do not survive a fork
    before = set(multiprocessing.active_children())
    lost, end = context.Pipe(duplex=False)
    ours = [signal.SIGINT] + [signal.SIGTERM] * (broken == "finished")
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin_worker, initargs=(lost, ours)
    )
    under_way: dict[Future[R], T] = {}
    to_come = iter(tasks)

    def begin(number: int) -> None:
        under_way.update((pool.submit(_do, work, task), task) for task in islice(to_come, number))

    try:
        with _holding_back(ours):
            begin(jobs)  # a pool begins those that it was given, whatever comes
        while under_way:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                task, result = under_way.pop(future), future.result()
                begin(1)
                yield task, result
    except BrokenProcessPool:
        end.close()
        raise DataError(
            f"a {doing} process was killed, perhaps for memory; finished files are kept: "
            "run again, with fewer --jobs"
        ) from None
    except BaseException:
        if broken == "stopped":
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
        try:
            wait(under_way)  # who had none may have been ended, and the pool be broken
        finally:
            end.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        end.close()
        lost.close()


_at_work = threading.Lock()


def _do(work: Callable[[T], R], task: T) -> R:
    with _at_work:
        return work(task)


def _begin_worker(lost: Connection, ignored: Sequence[signal.Signals]) -> None:
    """Ignore signals that are for the parent alone, and end in time.

    A worker whose parent was killed would wait for ever for its next task. So it would where
    another worker was killed that held the lock of the tasks, as all do that wait for one: the
    parent closes ``lost`` where no task is to come, and who is at work ends after that.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        if parent.sentinel not in wait_for([parent.sentinel, lost]):
            _at_work.acquire()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _holding_back(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Let signals come after the block, and to processes begun in it when these ask for them.

    Ctrl-C, and SIGTERM where tasks under way come to their end, are for the parent alone: a group
    gets both.
    """
    came: list[int] = []
    here = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    handlers = {n: signal.signal(n, lambda which, _: came.append(which)) for n in numbers if here}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for which in came:
            signal.raise_signal(which)


def peak_memory() -> int:
    """Most bytes that this process has had resident, Python and libraries included.

    On Linux, ``getrusage`` also counts what the process had that started it.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 2**10)
