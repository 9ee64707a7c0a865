"""Shared fixtures; importing the package here makes its shape annotations execute."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import typecheck  # noqa: F401  (before the hook, which imports it)
from jaxtyping import install_import_hook

install_import_hook("jetssl_cli", "typecheck.check")

import pytest
import torch

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.merge import MergeConfig, merge
from jetssl_cli.data.recipe import load_recipe

torch.set_num_threads(1)

HERE = Path(__file__).parent


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


@pytest.fixture
def jetssl(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command in an empty folder; one thread, tracking in that folder."""
    command = Path(sys.executable).with_name("jetssl")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "COLUMNS": "100",
    }

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(command), *map(str, words)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
