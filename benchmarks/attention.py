"""Attention alone, by every back end that runs here, on the jets of a batch of the preset `base`.

    python benchmarks/attention.py [--jets 1000]

Milliseconds forward and back of what the methods ask for: visible halves with registers, hidden
halves, hidden halves reading visible ones, whole jets. On a GPU in bf16; bar there: our kernels
(`triton`) take at most half of the time of FlashAttention (`varlen`), both ways together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from encoder import CONSTITUENTS, all_jets
from gpu import kernels_of
from rich.console import Console
from rich.table import Table

from jetssl_cli.batch import Packing
from jetssl_cli.encoder.attention import Backend, plan, require
from jetssl_cli.errors import ConfigError

REGISTERS, HEADS, WIDTH = 8, 8, 512
BAR, REPEATS = 0.5, 20


def runs_here(backend: Backend) -> bool:
    """Whether a back end that somebody would take runs on this machine."""
    try:
        require(backend)
    except ConfigError:
        return False
    return backend not in ("auto", "reference")


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of some calls; on a GPU the time for which its kernels run, whoever sends them off."""
    run()
    run()
    if device.type == "cuda":
        return sum(kernel.seconds for kernel in kernels_of(run))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(queries: Packing, keys: Packing, width: int, backend: Backend) -> list[float]:
    """Seconds forward and back; heads are of this width together."""
    device = queries.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rng = torch.Generator(device).manual_seed(0)
    q, k, v, above = (
        torch.randn(rows, HEADS, width // HEADS, generator=rng, device=device, dtype=dtype)
        for rows in (queries.rows, keys.rows, keys.rows, queries.rows)
    )
    attend, inputs = plan(queries, keys, backend=backend), [q, k, v]
    for x in inputs:
        x.requires_grad_()
    out = attend(*inputs)
    return [
        seconds(lambda: attend(*inputs), device),
        seconds(lambda: torch.autograd.grad(out, inputs, above, retain_graph=True), device),
    ]


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=1000, help="jets in the batch")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jets, _ = all_jets()
    drawn = np.random.default_rng(0).integers(len(jets), size=args.jets)
    sizes = torch.from_numpy(jets.take(drawn).first(CONSTITUENTS).sizes).long()
    whole = Packing.of(sizes + REGISTERS, device)
    hidden = Packing.of(sizes // 2, device)
    visible = Packing.of(sizes - sizes // 2 + REGISTERS, device)
    cases = {
        "visible": (visible, visible, WIDTH),
        "hidden": (hidden, hidden, WIDTH // 2),
        "hidden to visible": (hidden, visible, WIDTH // 2),
        "whole": (whole, whole, WIDTH),
    }
    backends = [backend for backend in get_args(Backend) if runs_here(backend)]
    found = {
        name: {backend: measure(*case, backend) for backend in backends}
        for name, case in cases.items()
    }
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    table = Table("jets", *backends, title=f"attention, ms forward + back, {where}")
    for name, times in found.items():
        table.add_row(
            name, *("{:.3f} + {:.3f}".format(*(1e3 * t for t in times[b])) for b in backends)
        )
    Console().print(table)
    print(json.dumps({"device": where, "seconds": found, "bar": BAR}))
    if not {"triton", "varlen"} <= set(backends):
        print("no GPU that runs triton and varlen: the bar was not looked at", file=sys.stderr)
        return 1
    holds = all(sum(times["triton"]) <= BAR * sum(times["varlen"]) for times in found.values())
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
