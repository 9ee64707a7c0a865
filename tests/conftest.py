"""Shared fixtures; importing the package here makes its shape annotations execute."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forking
import typecheck  # noqa: F401  (before the hook, which imports it)
from jaxtyping import config, install_import_hook

install_import_hook("jetssl_cli", "typecheck.check")

import pytest
import torch
from hypothesis import HealthCheck, settings

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.merge import MergeConfig, merge
from jetssl_cli.data.recipe import load_recipe

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that at the end no process is alone with one.

    Of several processes, each begins with a part of the list, all of one length.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    quick = [item for item in items if item.path not in slow]
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered: list[pytest.Item] = []
    for place in range(count):
        files = set(sorted(slow)[place::count])
        ordered += [item for item in items if item.path in files]
        room = max(0, len(items) * (place + 1) // count - len(ordered))
        ordered += quick[:room]
        del quick[:room]
    items[:] = ordered + quick


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shape annotations do not execute: of a training of many steps, a third of the time."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the committed ROOT sample."""
    return HERE / "samples"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of larger real and simulated files; the test is skipped where it is absent."""
    folder = HERE.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def jagged(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.h5, val.h5 and test.h5, made from the sample."""
    folder = tmp_path_factory.mktemp("jagged")
    source = samples / "jetclass"
    convert(ConvertConfig(sources=(source,), recipe=load_recipe("jetclass"), out=folder / "each"))
    for split in ("train", "val", "test"):
        merge(MergeConfig(sources=(folder / "each" / split,), out=folder / f"{split}.h5"))
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Socket of the process that executes commands."""
    path = tmp_path_factory.mktemp("commands") / "socket"
    with forking.server(path):
        yield path


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for the runs of many tests: to make one takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def jetssl(
    tmp_path: Path, commands: Path, tracking_uri: str
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command, as a process, in an empty folder; one thread."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "COLUMNS": "100",
    }

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*forking.client(commands, "as-it-is"), *map(str, words)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def printed_by() -> Callable[..., str]:
    """Run a program of ``reference``, without the checks of annotations; what it printed."""

    def run(program: str, *words: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, str(HERE / "reference" / program), *words],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
