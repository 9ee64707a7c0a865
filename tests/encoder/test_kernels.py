"""Kernels of a GPU: the five methods with and without; on a CPU, in Triton's interpreter."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

GPU = pytest.param({}, marks=pytest.mark.gpu, id="GPU")
INTERPRETER = pytest.param({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}, id="interpreter")


@pytest.mark.parametrize("method", ["ssfm", "mpm", "gpt", "dino", "jepa"])
@pytest.mark.parametrize("how", [GPU, INTERPRETER])
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_losses_and_gradients_are_those_without_kernels(printed_by, method, how):
    if not how and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert printed_by("kernels.py", method, **how).startswith(f"{method}: ")
