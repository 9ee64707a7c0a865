"""Training steps of every method on a GPU, with every attention back end that runs there.

    python benchmarks/gpu.py [--size base] [--jets 1000] [--methods ssfm,mpm] [--backends varlen]
                             [--compile] [--longest 30]

Jets per second of the whole step, its FLOP/s beside those of a large matrix product in bf16, the
share of the time in which the GPU has work (the rest waits for the host), kernels and copies of a
step, and peak memory. With --compile networks are recorded in CUDA graphs, with back end triton.
Target on an H200: 40 % of the rate of the product for ssfm and mpm, and 60,000 jets/s.
With --longest, the kernels that take most of the time are told as well. Without a GPU it says so,
and exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from encoder import CONSTITUENTS, all_jets
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from train import BARS, objective, steps

from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.encoder.attention import Backend
from jetssl_cli.encoder.blocks import compile_parts

TARGETS = {"share_of_product_rate": 0.4, "jets_per_second": 60_000}
BATCHES, REPEATS, STEPS = 4, 5, 10


def product_rate(device: torch.device) -> float:
    """FLOP/s of the product of two large matrices in bf16."""
    size = 8192
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 10)
    return 2 * size**3 / statistics.median(times[2:])


def measure(
    method: str, backend: Backend, args: argparse.Namespace, schema: Schema, jets: JetArrays
) -> dict[str, float]:
    """Jets/s, the share of the time in which the GPU works, its kernels, and peak memory."""
    device = torch.device("cuda")
    torch.compiler.reset()  # of another method
    gc.collect()
    torch.cuda.empty_cache()
    parts = [jets.between(n * args.jets, (n + 1) * args.jets) for n in range(BATCHES)]
    batches = [to_batch(part).to(device) for part in parts]
    trained = objective(method, args.size, schema, jets, backend).to(device)
    if args.compile:
        compile_parts(trained)
    step = steps(trained, batches, half=True)
    for _ in range(4 * BATCHES):  # shapes that come for the third time are recorded
        step()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / STEPS)
    seconds = statistics.median(times)
    found = kernels_of(step)
    for kernel in sorted(found, key=lambda one: -one.seconds)[: args.longest]:
        told = f"{1e3 * kernel.seconds:8.3f} ms {kernel.count:7.1f} x  {kernel.name[:100]}"
        print(told, file=sys.stderr, flush=True)
    work = sum(kernel.seconds for kernel in found)
    return {
        "jets_per_second": args.jets / seconds,
        "busy": work / seconds,
        "kernels": sum(kernel.count for kernel in found),
        "peak_memory_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


@dataclass(frozen=True)
class Kernel:
    """A kernel, or a kind of copy."""

    name: str
    count: float
    """In a step."""
    seconds: float
    """All of them together."""


def kernels_of(step: Callable[[], object]) -> list[Kernel]:
    """The kernels and copies of a step."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    return [
        Kernel(event.key, event.count / STEPS, event.self_device_time_total / STEPS / 1e6)
        for event in found.key_averages()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


def flops(method: str, args: argparse.Namespace, schema: Schema, jets: JetArrays) -> float:
    """FLOPs per jet of a step's matrix products, counted with the padded back end on the CPU."""
    few = 50
    counted = objective(method, args.size, schema, jets, "padded")
    with FlopCounterMode(display=False) as counter:
        steps(counted, [to_batch(jets.between(0, few))], half=False)()
    return counter.get_total_flops() / few


def main() -> int:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="base", help="tiny, small or base")
    parser.add_argument("--jets", type=int, default=1000, help="jets in a batch")
    parser.add_argument("--methods", default=",".join(BARS), help="some of the five")
    parser.add_argument("--backends", type=lambda words: words.split(","), help="by default all")
    parser.add_argument("--compile", action="store_true", help="with CUDA graphs")
    parser.add_argument("--longest", type=int, default=0, help="kernels that are told")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured", file=sys.stderr)
        return 1
    jets, schema = all_jets()
    drawn = np.random.default_rng(0).integers(len(jets), size=BATCHES * args.jets)
    jets = jets.take(drawn).first(CONSTITUENTS)
    rate = product_rate(torch.device("cuda"))
    backends: list[Backend] = ["triton", "varlen", "padded"]
    backends = ["flash-attn", *backends] if find_spec("flash_attn") else backends
    backends = args.backends or backends
    found: dict[tuple[str, Backend], dict[str, float]] = {}
    for method in args.methods.split(","):
        per_jet = flops(method, args, schema, jets)
        for backend in backends:
            row = measure(method, backend, args, schema, jets)
            row["flops_per_second"] = row["jets_per_second"] * per_jet
            row["share_of_product_rate"] = row["flops_per_second"] / rate
            found[method, backend] = row
            told = f"{method} {backend}: {row['jets_per_second']:,.0f} jets/s"
            print(told, file=sys.stderr, flush=True)  # compiling takes minutes
    name = torch.cuda.get_device_name()
    table = Table(
        "method", "back end", "jets/s", "TFLOP/s", "of a large product", "busy", "kernels",
        "peak GiB",
        title=f"training step, {args.size}, {args.jets} jets, {name}, torch {torch.__version__}",
    )  # fmt: skip
    for (method, backend), row in found.items():
        table.add_row(
            method,
            backend,
            f"{row['jets_per_second']:,.0f}",
            f"{row['flops_per_second'] / 1e12:.0f}",
            f"{row['share_of_product_rate']:.0%}",
            f"{row['busy']:.0%}",
            f"{row['kernels']:,.0f}",
            f"{row['peak_memory_gib']:.1f}",
        )
    Console().print(table)
    holds = all(
        max(found[method, backend][what] for backend in backends) >= target
        for method in {"ssfm", "mpm"} & set(args.methods.split(","))
        for what, target in TARGETS.items()
    )
    rows = {f"{method} {backend}": row for (method, backend), row in found.items()}
    print(json.dumps({"gpu": name, "product_rate": rate, "rows": rows, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
