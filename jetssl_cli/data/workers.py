"""Processes that share work: what they do with interrupts, and when one of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import TypeVar

from jetssl_cli.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def share(
    work: Callable[[T], R], tasks: Sequence[T], jobs: int, *, doing: str, at_once: bool = False
) -> Iterator[tuple[T, R]]:
    """Do every task, in ``jobs`` processes, or in this one; yield results as they come.

    Interrupted, or where a task fails, no others are begun, and those under way are finished, or
    with ``at_once`` given up. The processes end with this one.

    Args:
        work: a function of a module, which other processes can import.
        tasks: its arguments.
        jobs: number of processes.
        doing: what a process does, for the message when one is killed, such as "converting".
        at_once: whether a task may be broken off anywhere.

    Raises:
        DataError: a process was killed.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from ((task, work(task)) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # h5py and uproot do not survive a fork
    stop = context.Event()
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_end_with_parent, initargs=(stop,)
    )
    try:
        with _ignoring_interrupts():  # what the workers inherit: Ctrl-C is for this process alone
            futures = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise DataError(
            f"a {doing} process was killed, perhaps for memory; finished files are kept: "
            "run again, with fewer --jobs"
        ) from None
    except BaseException:
        if at_once:
            stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent(stop: Event) -> None:
    """A worker whose parent was killed would wait for ever for its next task."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_after(wait: Callable[[], object]) -> None:
        wait()
        os._exit(1)

    for wait in (parent.join, stop.wait):
        threading.Thread(target=end_after, args=(wait,), daemon=True).start()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
