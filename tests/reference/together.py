"""A script for torchrun: SSFM whose randomness belongs to the jets, not to batches or processes.

    torchrun --nproc-per-node 2 together.py TRAIN VAL OUT [SECTION.KEY=VALUE]...

Every second constituent is hidden and the noise is a constant, so that a jet asks the same question
wherever it is read. A rank in the variable FAILING fails in its third loss.
"""

from __future__ import annotations

import os
import sys

import torch

from jetssl_cli.config import Layer
from jetssl_cli.objectives import masking, ssfm
from jetssl_cli.objectives.ssfm import SSFM
from jetssl_cli.runs.pretrain import load_config, pretrain

SETTINGS = {
    "tracking": False,
    "encoder": {"width": 16, "depth": 2, "heads": 2, "registers": 2},
    "objective": {"time_features": 4},
    "optim": {"lr": 3e-3},
    "train": {"log_every": 1, "val_every": 3, "probe_every": 2, "precision": "32"},
}


def without_chance() -> None:
    """Take the chance out of SSFM."""
    masking.random_mask = lambda packing, *_: packing.rank % 2 == 1
    randn = torch.randn
    ssfm.torch = type("torch", (), vars(torch) | {"randn": staticmethod(calm(randn))})


def calm(randn):
    """Numbers like noise, that depend on the shape behind the first axis alone."""

    def numbers(*shape, generator, device):
        del generator
        shape = shape[0] if isinstance(shape[0], torch.Size) else torch.Size(shape)
        row = randn(shape[1:], generator=torch.Generator().manual_seed(1))
        return row.to(device).expand(shape).clone()

    return numbers


def fail_at(rank: str, call: int) -> None:
    """Let one process fail in a loss."""
    right, calls = SSFM.loss, []

    def loss(self, batch, rng):
        calls.append(1)
        if os.environ.get("RANK") == rank and len(calls) == call:
            raise RuntimeError("a fault")
        return right(self, batch, rng)

    SSFM.loss = loss


def main(train: str, val: str, out: str, *overrides: str) -> None:
    """Pretrain."""
    without_chance()
    if "FAILING" in os.environ:
        fail_at(os.environ["FAILING"], 3)
    files = {"out": out, "data": {"train": [train], "val": [val]}}
    layer = Layer("the test", SETTINGS | files)
    pretrain(load_config("ssfm", "tiny", layer, overrides=overrides))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
