"""Vertices: the score file of ``--task vertex``, and the adjusted Rand index of its partitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.config import Strict
from jetssl_cli.errors import DataError
from jetssl_cli.objectives.pairs import Pairs
from jetssl_cli.objectives.vertex import Vertex
from jetssl_cli.runs.finetune import load_finetuned
from jetssl_cli.scores.metrics import UNDEFINED, Estimate
from jetssl_cli.scores.rows import Cell, TaskRow
from jetssl_cli.scores.trackfile import TrackSet, export_tracks, read_tracks

TASK = "vertex"
MANY = 4
"""Jets with so many vertices or more are taken together."""
CAPTION = (
    "Jets with two or more tracks of known vertex, by the number of vertices that these come from. "
    "ARI: adjusted Rand index, mean over jets and its standard error. Exact: share of jets whose "
    "partition is the true one. One vertex: ARI where all tracks are put into one vertex."
)


class VertexLine(Strict):
    """The jets with so many true vertices."""

    vertices: str
    num_jets: int
    adjusted_rand: Estimate
    exact: Estimate
    one_vertex: Estimate


class VertexRow(TaskRow):
    """How well the tracks of one score file are grouped."""

    notes: ClassVar[tuple[str, ...]] = (CAPTION,)
    threshold: float
    """Pairs with a score above it are joined."""
    by_vertices: tuple[VertexLine, ...]

    def lines(self) -> list[dict[str, Cell]]:
        """One for each number of vertices, and one for all jets."""
        return [
            {
                "vertices": line.vertices,
                "jets": line.num_jets,
                "ARI": line.adjusted_rand,
                "exact": line.exact,
                "one vertex": line.one_vertex,
                "threshold": f"{self.threshold:g}",
            }
            for line in self.by_vertices
        ]

    def headline(self) -> Mapping[str, Estimate]:
        """Adjusted Rand index by number of vertices."""
        return {f"adjusted_rand/{x.vertices}": x.adjusted_rand for x in self.by_vertices}


def export(run: Path, data: Path, out: Path, batch_size: int) -> Path:
    """Write the scores of all pairs and the vertices of every track; see ``export_tracks``."""
    loaded = load_finetuned(run)
    network = loaded[2]
    assert isinstance(network, Vertex)
    threshold = round(float(network.threshold), 6)

    def answer(batch: JetBatch) -> dict[str, torch.Tensor]:
        pairs = Pairs.of(batch.packing)
        scores = network.pair_logits(batch, pairs).float().sigmoid()
        vertices = numbered(pairs.components(scores > threshold), batch.packing)
        return {"vertices": vertices, "pairs": scores}

    return export_tracks(
        loaded,
        (run, data, out),
        answer,
        batch_size=batch_size,
        attributes={"threshold": str(threshold)},
    )


def numbered(group: Int[torch.Tensor, " T"], packing: Packing) -> Int[torch.Tensor, " T"]:
    """Groups counted in each jet from 0, in the order of their first rows.

    ``group`` has the number of the first row of each, as ``Pairs.components`` gives it.
    """
    rows = torch.arange(packing.total, device=group.device)
    begins = (group == rows).long().cumsum(0) - 1  # number of the group among all jets
    before = torch.nn.functional.pad(begins + 1, (1, 0)).index_select(0, packing.offsets)
    return (begins[group] - before.index_select(0, packing.owner)).int()


def evaluate(path: Path) -> VertexRow:
    """All figures of one score file.

    Raises:
        DataError: it is not one, or no jet has two tracks of known vertex.
    """
    found = read_tracks(path, TASK, "vertices")
    index, count, single = by_jet(found)
    chosen = count > 0
    if not chosen.any():
        raise DataError(f"{path}: no jet has two tracks of known vertex")
    kinds = {str(n): count == n for n in range(1, MANY)}
    kinds |= {f"{MANY}+": count >= MANY, "2+": count >= 2, "all": chosen}
    return VertexRow(
        scores=str(path),
        run=found.run,
        num_jets=found.num_jets,
        threshold=float(found.attributes["threshold"]),
        by_vertices=tuple(
            VertexLine(
                vertices=name,
                num_jets=int(jets.sum()),
                adjusted_rand=mean(index[jets]),
                exact=mean((index[jets] == 1).astype(float)),
                one_vertex=mean(single[jets]),
            )
            for name, jets in kinds.items()
        ),
    )


def by_jet(
    found: TrackSet,
) -> tuple[Float[np.ndarray, " J"], Int[np.ndarray, " J"], Float[np.ndarray, " J"]]:
    """Adjusted Rand index of each jet, its number of true vertices, and that index for one vertex.

    Among the tracks whose vertex is known; the number is 0 where these are fewer than two.
    """
    packing = Packing(torch.from_numpy(found.offsets))
    pairs, truth = Pairs.of(packing), torch.from_numpy(found.truth).long()
    known, together = pairs.both(truth >= 0), pairs.same(truth)
    guess = pairs.same(torch.from_numpy(found.arrays["vertices"]).long())
    index = pairs.adjusted_rand(guess, together, known)
    single = pairs.adjusted_rand(torch.ones_like(together), together, known)
    table = np.column_stack([found.owner, found.truth])[found.truth >= 0]
    vertices = np.bincount(np.unique(table, axis=0)[:, 0], minlength=found.num_jets)
    tracks = np.bincount(table[:, 0], minlength=found.num_jets)
    return index.numpy(), np.where(tracks >= 2, vertices, 0), single.numpy()


def mean(values: Float[np.ndarray, " N"]) -> Estimate:
    """Mean and its standard error; undefined of nothing."""
    if len(values) == 0:
        return UNDEFINED
    value = float(values.mean())
    if len(values) < 2:
        return Estimate(value, None, None)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(value, value - error, value + error)
