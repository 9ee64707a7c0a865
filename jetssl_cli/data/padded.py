"""The padded HDF5 files of JetSSL-Lite as a source of jets.

``csts (J, N, F)``, ``csts_id (J, N)``, ``jets (J, G)``, ``labels (J,)`` and ``mask (J, N)``, True
where there is a constituent. The columns and classes have to be those of the recipe, in its order;
nothing is computed anew, so that impact parameters keep the signs they were written with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.data.hdf5 import attributes_of, open_foreign, readable
from jetssl_cli.data.jagged import KIND
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import Recipe, schema_of
from jetssl_cli.errors import DataError
from jetssl_cli.physics import PARTICLE_CLASSES

ARRAYS = ("csts", "csts_id", "jets", "labels", "mask")


def read_padded(path: Path, recipe: Recipe, step: int) -> Iterator[tuple[int, JetArrays]]:
    """The jets of a padded file, ``step`` at a time, each time with the number of the first.

    Raises:
        DataError: not such a file, or its columns are not those of the recipe.
    """
    schema = schema_of(recipe)
    if schema.truth or not schema.ids:
        raise DataError(f"{path}: a padded file has particle ids and no truth; recipe "
                        f"{recipe.name!r} wants otherwise")  # fmt: skip
    with open_foreign(path) as file, readable(path):
        missing = [name for name in ARRAYS if name not in file]
        if missing and attributes_of(file).get("format") == KIND:
            raise DataError(f"{path}: is converted already")
        if missing:
            raise DataError(f"{path}: is no padded file of jets: it has no array {missing[0]!r}")
        jets, longest = file["csts"].shape[:2]
        expected = {
            "csts": (jets, longest, len(schema.constituents)),
            "csts_id": (jets, longest),
            "jets": (jets, len(schema.jets)),
            "labels": (jets,),
            "mask": (jets, longest),
        }
        for name, shape in expected.items():
            if file[name].shape != shape:
                raise DataError(
                    f"{path}: {name} has the shape {file[name].shape}; recipe {recipe.name!r} "
                    f"expects {shape}"
                )
        if jets == 0:
            raise DataError(f"{path}: has no entries")
        for start in range(0, jets, step):
            read = {name: file[name][start : start + step] for name in ARRAYS}
            yield start, _packed(read, f"{path}", start, len(schema.classes))


def _packed(read: dict[str, np.ndarray], source: str, start: int, num_classes: int) -> JetArrays:
    mask = read["mask"].astype(bool)
    owner = np.repeat(np.arange(len(mask)), mask.sum(axis=1))
    with np.errstate(over="ignore"):
        features = read["csts"][mask].astype(np.float32)
        jets = read["jets"].astype(np.float32)
    ids, labels = read["csts_id"][mask], read["labels"]
    checks = (
        ("a constituent feature is not finite", ~np.isfinite(features).all(axis=1), owner),
        ("a particle id is none", ~_are_indices(ids, len(PARTICLE_CLASSES)), owner),
        ("a jet feature is not finite", ~np.isfinite(jets).all(axis=1), np.arange(len(jets))),
        ("a label is no class", ~_are_indices(labels, num_classes), np.arange(len(jets))),
    )
    for problem, bad, jet in checks:
        if bad.any():
            raise DataError(f"{source}: jet {start + int(jet[np.flatnonzero(bad)[0]])}: {problem}")
    return JetArrays(
        features,
        ids.astype(np.uint8),
        np.zeros((len(ids), 0), np.int32),
        mask.sum(axis=1).astype(np.int64),
        jets,
        labels.astype(np.int16),
    )


def _are_indices(values: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Which of these numbers are whole, and between 0 and ``count``."""
    whole: NDArray[np.bool_] = values == np.rint(values)
    return whole & (values >= 0) & (values < count)
