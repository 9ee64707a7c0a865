"""Where numbers come from: the run, its weights and the data, each by a hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jetssl_cli.errors import DataError, RunError, reason
from jetssl_cli.runs import checkpoint
from jetssl_cli.safeyaml import read_yaml

PLACES = ("out", "backbone")
"""Settings that are a folder."""
IRRELEVANT = (
    "seed", "tracking", "devices", "nodes", "compile", "workers", "attention", "recompute",
    "checkpoint", "resume",
)  # fmt: skip
"""Settings that two runs may differ by and still count as the same: seeds, and how it is computed
rather than what."""


@dataclass(frozen=True)
class Provenance:
    """What is told beside numbers that a run has made of data."""

    run: str
    """Folder of the run."""
    data: str
    """The data file."""
    run_id: str
    """Of configuration and weights: tells runs apart wherever their folders are."""
    weights_hash: str
    """SHA-256 of the file of the weights."""
    data_hash: str
    """SHA-256 of the data file."""
    group: str
    """Equal for runs that differ by their seeds, and by those of their backbones, alone."""
    seed: int
    """Seed of the run."""
    config: str
    """The resolved configuration, as YAML."""
    precision: str
    """Arithmetic that the numbers were made with."""

    def attributes(self) -> dict[str, str | int]:
        """All but the configuration, which may be too long for an attribute."""
        return {name: value for name, value in vars(self).items() if name != "config"}


def provenance(run: Path, weights: str, data: Path, precision: str) -> Provenance:
    """Where numbers come from that a run makes of a data file; ``weights`` names their file.

    Raises:
        DataError: the data cannot be read.
        RunError: the run cannot be read.
    """
    try:
        config = (run / checkpoint.CONFIG).read_text(encoding="utf-8")
        of_weights = sha256(run / weights)
    except OSError as err:
        raise RunError(f"{run}: cannot be read: {reason(err)}") from None
    try:
        of_data = sha256(data)
    except OSError as err:
        raise DataError(f"{data}: cannot be read: {reason(err)}") from None
    settings = read_yaml(run / checkpoint.CONFIG)
    return Provenance(
        run=str(run),
        data=str(data),
        run_id=run_id(config, of_weights),
        weights_hash=of_weights,
        data_hash=of_data,
        group=group(run),
        seed=int(settings.get("train", {}).get("seed", 0)),
        config=config,
        precision=precision,
    )


def run_id(config: str, weights_hash: str) -> str:
    """What tells a run apart, from the text of its configuration and the hash of its weights."""
    return hashlib.sha256(f"{config}{weights_hash}".encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """The hash of a file, as ``sha256sum`` prints it; a file that stays what it is is read once."""
    found = path.stat()
    return _sha256(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ino)


@cache
def _sha256(path: Path, *seen: int) -> str:
    del seen
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def group(run: Path) -> str:
    """A hash of what a run was, without seeds and without places.

    Of data files the names count, not the folders. A backbone counts by what it was itself, where
    its run is still there, and else by its name; one that gave nothing but its architecture does
    not count.

    Raises:
        RunError: not a run folder.
    """
    if not (run / checkpoint.CONFIG).is_file():
        raise RunError(f"{run}: is not a run folder: it has no {checkpoint.CONFIG}")
    settings = read_yaml(run / checkpoint.CONFIG)
    told = _relevant(settings)
    backbone = settings.get("backbone")
    if isinstance(backbone, str) and not settings.get("random"):
        places = (Path(backbone), _began_in(run, settings) / backbone)
        found = next((place for place in places if (place / checkpoint.CONFIG).is_file()), None)
        told["backbone"] = group(found) if found else Path(backbone).name
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _began_in(run: Path, settings: dict[str, Any]) -> Path:
    """The folder that relative paths in a run's settings start from, as far as its own tells."""
    place, out = run.resolve(), Path(str(settings.get("out", "")))
    known = not out.is_absolute() and place.parts[-len(out.parts) :] == out.parts
    return place.parents[len(out.parts) - 1] if known else place.parent


def _relevant(settings: Any) -> Any:
    if isinstance(settings, dict):
        kept = {key: value for key, value in settings.items() if key not in IRRELEVANT + PLACES}
        data = {"train", "val"} & kept.keys()
        return {
            key: [Path(str(file)).name for file in value]
            if key in data and isinstance(value, list)
            else _relevant(value)
            for key, value in kept.items()
        }
    return settings
