"""What a run was made of: its data and its backbone, by what is in them and not by their names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import ValidationError

from jetssl_cli.config import Strict
from jetssl_cli.data.sample import Sample
from jetssl_cli.errors import ConfigError, RunError
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.snapshot import HASH, content_hash


class Sources(Strict):
    """What the weights of a run tell of it; those of an earlier version tell nothing."""

    train: tuple[str, ...] = ()
    """Fingerprint of each file of training jets."""
    val: tuple[str, ...] = ()
    """The same of the validation jets."""
    backbone: str | None = None
    """Of a finetuning; see ``hash_of_backbone``."""


def hash_of_backbone(backbone: Path, *, random: bool) -> str | None:
    """What tells the backbone from others that were in its folder before, or will be.

    That is the hash of its weights, which an earlier version may have left out. A random network
    has the scaling alone from it, and counts by that: baselines are shared by several backbones.

    Raises:
        RunError: the weights cannot be read.
    """
    path = backbone / checkpoint.BACKBONE
    if random:
        return _hash_of_scaling(path, path.stat().st_mtime_ns)
    found = weightfile.read_facts(path).get(HASH)
    return None if found is None else str(found)


def require_same_sources(
    run: Path, data: DataConfig, backbone: Path | None = None, *, random: bool = False
) -> None:
    """Check that a complete run was made of what its settings name now.

    A finetuning has a backbone, or a ``random`` one like it. What is not there any more is not
    compared.

    Raises:
        ConfigError: names what is another now.
        DataError: a data file cannot be read.
        RunError: weights cannot be read.
    """
    told, made = _told(run / checkpoint.MODEL), f"the run in {run} was made with"
    for paths, fingerprints in ((data.train, told.train), (data.val, told.val)):
        if fingerprints and len(fingerprints) != len(paths):
            raise ConfigError(
                f"{made} {len(fingerprints)} files in the place of {paths[0]}, not {len(paths)}"
            )
        for path, fingerprint in zip(paths, fingerprints, strict=False):
            if path.is_file() and Sample((path,)).fingerprint != fingerprint:
                raise ConfigError(f"{made} other jets than those in {path}")
    if told.backbone is None or backbone is None:
        return
    there = (backbone / checkpoint.BACKBONE).is_file()
    if there and hash_of_backbone(backbone, random=random) != told.backbone:
        raise ConfigError(f"{made} another backbone than the one in {backbone}")


def _told(path: Path) -> Sources:
    facts = weightfile.read_facts(path)
    try:
        return Sources(**{name: facts[name] for name in Sources.model_fields if name in facts})
    except ValidationError as err:
        place = ".".join(map(str, err.errors()[0]["loc"]))
        raise RunError(f"{path}: its metadata do not tell what it was made of: {place}") from None


@cache
def _hash_of_scaling(path: Path, written: int) -> str:
    del written
    weights, _ = weightfile.read_weights(path)
    return content_hash({k: v for k, v in weights.items() if k.startswith("scaling.")}, "")
