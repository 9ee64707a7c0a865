"""Kernels of a GPU: the five methods with and without; on a CPU, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

GPU = pytest.param({}, marks=pytest.mark.gpu, id="GPU")
INTERPRETER = pytest.param({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}, id="interpreter")


@pytest.mark.parametrize("method", ["ssfm", "mpm", "gpt", "dino", "jepa"])
@pytest.mark.parametrize("how", [GPU, INTERPRETER])
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_losses_and_gradients_are_those_without_kernels(method, how):
    if not how and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    folder = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(folder / "reference" / "kernels.py"), method],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | how | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{method}: ")
