"""Which module writes and reads the score files of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from jetssl_cli.data.hdf5 import attributes_of, open_foreign, readable
from jetssl_cli.errors import DataError
from jetssl_cli.runs import checkpoint
from jetssl_cli.scores.foreign import is_foreign
from jetssl_cli.scores.taskrows import TaskRow

Export = Callable[[Path, Path, Path, int], int]
"""Takes the folder of the run, the file of the jets, that to write, and how many jets at a time;
returns how many it has written."""


def exporter(run: Path) -> Export | None:
    """What writes the score file of a run; None where that holds scores of the classes of jets.

    Raises:
        RunError: not a run.
    """
    from jetssl_cli.runs.finetune_config import FinetuneConfig  # as in ``_modules``

    if checkpoint.read_command(run) != "finetune":
        return None
    module = _modules().get(checkpoint.read_config(run, FinetuneConfig).objective.name)
    return module.export if module else None


def evaluate_tasks(paths: Sequence[Path]) -> list[TaskRow]:
    """One row for each score file of one task; none if they hold scores of the classes of jets.

    Files of cwola are such files as well, and are compared with others as those.

    Raises:
        DataError: a file is not a valid score file, or they are of different tasks.
    """
    tasks = [_task(path) for path in paths]
    if not any(tasks):
        return []
    from jetssl_cli.scores import sic

    if set(tasks) <= {None, sic.TASK} and None in tasks:
        return []
    for path, task in zip(paths, tasks, strict=True):
        if task != tasks[0]:
            kinds = [f"the task {name}" if name else "classes of jets" for name in (task, tasks[0])]
            raise DataError(f"{path}: holds scores of {kinds[0]}, {paths[0]} of {kinds[1]}")
    rows: list[TaskRow] = [
        _modules()[str(task)].evaluate(path) for path, task in zip(paths, tasks, strict=True)
    ]
    return rows


def _task(path: Path) -> str | None:
    if is_foreign(path):
        return None
    with open_foreign(path) as file, readable(path):
        task = attributes_of(file).get("task")
        return str(task) if task is not None and task in _modules() else None


def _modules() -> dict[str, ModuleType]:
    """Those of the tasks. They bring torch, which takes seconds: not before it is needed."""
    from jetssl_cli.scores import sic, tracks, vertices

    return {module.TASK: module for module in (tracks, vertices, sic)}
