"""``jetssl merge``: several jagged files to one, uniformly shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt

from jetssl_cli.config import Strict, to_yaml
from jetssl_cli.data.jagged import JaggedFile, JetArrays, concatenate, find, write
from jetssl_cli.errors import DataError
from jetssl_cli.progress import progress

JETS_PER_WRITE = 10_000


class MergeConfig(Strict):
    """What to merge, and where to."""

    sources: tuple[Path, ...]
    """Jagged files, or folders that hold them."""
    out: Path
    """The merged file."""
    seed: NonNegativeInt = 0
    """Seed of the shuffle."""
    overwrite: bool = False
    """Replace the merged file if it is there already."""


class MergeReport(Strict):
    """What a merge did."""

    out: Path
    num_files: int
    num_jets: int


def merge(cfg: MergeConfig) -> MergeReport:
    """Write all jets of the sources in one uniformly random order, given by the seed.

    The result does not depend on the order in which the sources are named. The jets are held in
    memory while they are shuffled.

    Raises:
        DataError: no sources, sources of different recipes, or the output is there already.
    """
    paths = find(cfg.sources, "*.h5")
    if cfg.out.resolve() in {path.resolve() for path in paths}:
        raise DataError(f"{cfg.out}: is one of the sources; choose another name")
    if cfg.out.exists() and not cfg.overwrite:
        raise DataError(f"{cfg.out}: is there already; choose another name or --overwrite")
    parts: list[JetArrays] = []
    sources: list[str] = []
    with JaggedFile(paths[0]) as first:
        recipe = first.recipe
    with progress("read", len(paths), "files") as advance:
        for path in paths:
            with JaggedFile(path) as file:
                if to_yaml(file.recipe) != to_yaml(recipe):
                    raise DataError(
                        f"{path}: was made with the recipe {file.recipe.name!r}, {paths[0]} with "
                        f"{recipe.name!r} or another version of it; they cannot be merged"
                    )
                parts.append(file.read())
                sources += file.sources
            advance(1)
    jets = concatenate(parts)
    order = np.random.default_rng(cfg.seed).permutation(len(jets))
    with write(cfg.out, recipe, sources) as writer, progress("write", len(jets), "jets") as advance:
        for start in range(0, len(jets), JETS_PER_WRITE):
            chunk = jets.take(order[start : start + JETS_PER_WRITE])
            writer.append(chunk)
            advance(len(chunk))
    return MergeReport(out=cfg.out, num_files=len(paths), num_jets=len(jets))
