"""Vertices: the score file of ``--task vertex``, and the adjusted Rand index of its partitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.config import Strict
from jetssl_cli.data.hdf5 import readable
from jetssl_cli.errors import DataError
from jetssl_cli.objectives.pairs import Pairs
from jetssl_cli.objectives.vertex import Vertex
from jetssl_cli.runs.finetune import load_finetuned
from jetssl_cli.scores.metrics import UNDEFINED, Estimate
from jetssl_cli.scores.taskrows import Cell, TaskRow
from jetssl_cli.scores.trackfile import TrackSet, export_tracks, read_tracks

TASK = "vertex"
MANY = 4
"""Jets with so many vertices or more are taken together."""
CAPTION = (
    "Jets with two or more tracks of known vertex, by the number of vertices that these come from. "
    "ARI: adjusted Rand index, mean over jets and its standard error. Exact: share of jets whose "
    "partition is the true one. For comparison the ARI of all tracks in one vertex, and of two: "
    "that of the tracks with |d0| / d0_err > 3, and that of all others."
)
LEAST_SIGNIFICANCE = 3.0


class VertexLine(Strict):
    """The jets with so many true vertices."""

    vertices: str
    num_jets: int
    adjusted_rand: Estimate
    exact: Estimate
    one_vertex: Estimate
    displaced: Estimate
    """Of a second vertex for tracks with a significant impact parameter; undefined without d0_err.
    """


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
                "two by d0": line.displaced,
                "threshold": f"{self.threshold:g}",
            }
            for line in self.by_vertices
        ]

    def headline(self) -> Mapping[str, Estimate]:
        """Adjusted Rand index by number of vertices."""
        named = {x.vertices.replace("+", " or more"): x.adjusted_rand for x in self.by_vertices}
        return {f"adjusted_rand/{name}": index for name, index in named.items()}


def export(run: Path, data: Path, out: Path, batch_size: int) -> int:
    """Write the scores of all pairs and the vertices of every track; see ``export_tracks``."""
    loaded = load_finetuned(run)
    network = loaded[2]
    assert isinstance(network, Vertex)
    threshold = round(float(network.threshold), 6)
    columns = [column.name for column in loaded[1].constituents]
    measured = {"d0", "d0_err"} <= set(columns)

    def answer(batch: JetBatch) -> dict[str, torch.Tensor]:
        pairs = Pairs.of(batch.packing)
        scores = network.pair_logits(batch, pairs).float().sigmoid()
        vertices = numbered(pairs.components(scores > threshold), batch.packing)
        found = {"vertices": vertices, "pairs": scores}
        if measured:
            d0, error = (batch.features[:, columns.index(name)] for name in ("d0", "d0_err"))
            found["displaced"] = (d0.abs() > LEAST_SIGNIFICANCE * error).to(torch.uint8)
        return found

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
    found = read_tracks(path, TASK, "vertices", optional=("displaced",))
    with readable(path):
        threshold = float(found.attributes["threshold"])
    judged = judge(found)
    count, index, displaced = judged.vertices, judged.index, judged.displaced
    chosen = count > 0
    if not chosen.any():
        raise DataError(f"{path}: no jet has two tracks of known vertex")
    kinds = {str(n): count == n for n in range(1, MANY)}
    kinds |= {f"{MANY}+": count >= MANY, "2+": count >= 2, "all": chosen}
    return VertexRow(
        scores=str(path),
        run=found.run,
        num_jets=found.num_jets,
        threshold=threshold,
        by_vertices=tuple(
            VertexLine(
                vertices=name,
                num_jets=int(jets.sum()),
                adjusted_rand=mean(index[jets]),
                exact=mean((index[jets] == 1).astype(float)),
                one_vertex=mean(judged.one_vertex[jets]),
                displaced=UNDEFINED if displaced is None else mean(displaced[jets]),
            )
            for name, jets in kinds.items()
        ),
    )


@dataclass(frozen=True)
class Judged:
    """What is found of each jet, among the tracks whose vertex is known; each (J,)."""

    vertices: NDArray[np.int64]
    """Number of true vertices; 0 where fewer than two tracks are known."""
    index: NDArray[np.float64]
    """Adjusted Rand index of the partition of the network."""
    one_vertex: NDArray[np.float64]
    """That of all tracks in one vertex."""
    displaced: NDArray[np.float64] | None
    """That of displaced tracks in a second one; None where it is not known which these are."""


def judge(found: TrackSet, pairs_at_a_time: int = 10_000_000) -> Judged:
    """Judge the partitions of all jets, some at a time: pairs take memory.

    Raises:
        DataError: a jet has more pairs of tracks than that.
    """
    guesses = {**found.arrays, "one_vertex": np.zeros_like(found.truth)}
    indices: dict[str, list[NDArray[np.float64]]] = {name: [] for name in guesses}
    sizes = np.diff(found.offsets)
    before = np.concatenate([[0], np.cumsum(sizes * (sizes - 1) // 2)])
    first = 0
    while first < found.num_jets:
        end = int(np.searchsorted(before, before[first] + pairs_at_a_time, side="right")) - 1
        if end == first:
            raise DataError(f"{found.path}: jet {first} has {sizes[first]:,} tracks, too many")
        offsets = found.offsets[first : end + 1]
        first = end
        rows = slice(offsets[0], offsets[-1])
        pairs = Pairs.of(Packing(torch.from_numpy(offsets - offsets[0])))
        truth = torch.from_numpy(found.truth[rows]).long()
        known, together = pairs.both(truth >= 0), pairs.same(truth)
        for name, group in guesses.items():
            guess = pairs.same(torch.from_numpy(group[rows]).long())
            indices[name].append(pairs.adjusted_rand(guess, together, known).numpy())
    index = {name: np.concatenate(parts) for name, parts in indices.items()}
    table = np.column_stack([found.owner, found.truth])[found.truth >= 0]
    vertices = np.bincount(np.unique(table, axis=0)[:, 0], minlength=found.num_jets)
    tracks = np.bincount(table[:, 0], minlength=found.num_jets)
    return Judged(
        vertices=np.where(tracks >= 2, vertices, 0),
        index=index["vertices"],
        one_vertex=index["one_vertex"],
        displaced=index.get("displaced"),
    )


def mean(values: Float[np.ndarray, " N"]) -> Estimate:
    """Mean and its standard error, which equal values say nothing about; undefined of nothing."""
    if len(values) == 0:
        return UNDEFINED
    value = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    if error == 0:
        return Estimate(value, None, None)
    return Estimate(value, value - error, value + error)
