"""The same function in several real processes that talk by gloo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from reference.jets import assert_equal_gradients, take
from torch import distributed
from torch.multiprocessing import spawn

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives.objective import Objective


def in_processes(
    folder: Path, function: Callable[..., object], arguments: Sequence[tuple[object, ...]]
) -> list[object]:
    """What a function gives in each process; one process for each tuple of arguments."""
    spawn(_run, (folder, function, arguments), nprocs=len(arguments))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(arguments))]


def _run(rank: int, folder: Path, function: Callable[..., object], arguments) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(arguments)
    )
    torch.save(function(*arguments[rank]), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def loss_and_gradients(
    objective: Objective, batch: JetBatch, skip: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]:
    """Terms of the loss, their gradients and diagnostics; ``skip`` random numbers come before.

    In evaluation, where alone diagnostics are kept.
    """
    objective.eval()
    rng = torch.Generator().manual_seed(3)
    torch.rand(skip, generator=rng, dtype=torch.float64)
    objective.zero_grad()
    terms = objective.loss(batch, rng)
    torch.stack(list(terms.values())).sum().backward()
    named = objective.named_parameters()
    grads = {name: p.grad.clone() for name, p in named if p.grad is not None}
    values = {name: value.detach() for name, value in terms.items()}
    return values, grads, objective.diagnostics()


def halves_agree(folder: Path, objective: Objective, batch: JetBatch, cut: int) -> None:
    """Two processes with parts of a batch find, on average, what one finds with all of it."""
    jets = range(batch.packing.num_jets)
    parts = [take(batch, jets[:cut]), take(batch, jets[cut:])]
    wanted = loss_and_gradients(objective, batch, 0)
    objective.zero_grad()
    skips = [0, parts[0].packing.total]
    arguments = [(objective, part, skip) for part, skip in zip(parts, skips, strict=True)]
    found = in_processes(folder, loss_and_gradients, arguments)
    values, grads, diagnostics = zip(*found, strict=True)
    for name, value in wanted[0].items():
        torch.testing.assert_close(sum(v[name] for v in values) / 2, value, rtol=1e-5, atol=1e-6)
    mean = {name: sum(g[name] for g in grads) / 2 for name in wanted[1]}
    assert_equal_gradients(mean, wanted[1])
    for of_process in diagnostics:
        torch.testing.assert_close(of_process, wanted[2], rtol=1e-5, atol=1e-6)
