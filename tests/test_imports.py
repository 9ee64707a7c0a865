"""What the modules need of other packages in order to be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

EVERY_MODULE = """
import importlib, pkgutil
from typing import Any, TypeVar
import numpy as np
import numpy.typing
from typing_extensions import TypeAliasType

Number = TypeVar("Number")
array = np.ndarray[Any, np.dtype[Number]]
numpy.typing.NDArray = TypeAliasType("NDArray", array, type_params=(Number,))
import jetssl_cli

for module in pkgutil.walk_packages(jetssl_cli.__path__, "jetssl_cli."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as err:
        if err.name != "triton":  # which comes with PyTorch for CUDA
            raise
"""


@pytest.mark.slow
def test_modules_can_be_imported_where_ndarray_is_a_type_alias():
    """As it is since numpy 2.5: no class that a shape annotation could stand on."""
    command = [sys.executable, "-c", EVERY_MODULE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
