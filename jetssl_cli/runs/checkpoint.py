"""A run folder: the resolved configuration, what the network expects, and its weights.

    config.yaml           the resolved configuration; enough to run again
    schema.yaml           columns, units and classes that the network was built for
    snapshots/            where a training stands that has not come to its end
    model.safetensors     everything that was trained, and the scaling
    backbone.safetensors  the encoder worth keeping (of a pretraining)
    metrics.jsonl         one line per measurement
    mlflow.txt sent.json status.txt    what MLflow has of it (sync.py)

What a file of weights is: weightfile.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from jetssl_cli.config import Layer, Strict, load, to_yaml
from jetssl_cli.data.place import to_disk
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.errors import ConfigError, RunError, reason
from jetssl_cli.runs import budget, lock
from jetssl_cli.safeyaml import read_yaml

MODEL = "model.safetensors"
BACKBONE = "backbone.safetensors"
CONFIG = "config.yaml"
SCHEMA = "schema.yaml"
METRICS = "metrics.jsonl"
FREE = (
    "out", "resume", "backbone", "tracking", "checkpoint.", "encoder.attention",
    "encoder.recompute", "data.train", "data.val", "data.workers", "embeddings_memory",
)  # fmt: skip
"""Settings that may change when a run goes on: they do not change its numbers. Of the data files
fingerprints are compared."""

C = TypeVar("C", bound=Strict)


def require_free(out: Path) -> None:
    """Check that a run may begin in this folder.

    Raises:
        RunError: something is there already.
    """
    if out.exists() and (not out.is_dir() or any(not _passing(path) for path in out.iterdir())):
        more = "; --resume goes on with it" if is_begun(out) and not is_complete(out) else ""
        raise RunError(f"{out}: is there already; choose another folder for this run{more}")


def is_begun(out: Path) -> bool:
    """Whether a run has begun in this folder."""
    return (out / CONFIG).is_file()


def is_complete(out: Path) -> bool:
    """Whether the run in this folder has come to its end: this file is written last."""
    return (out / MODEL).is_file()


def resumed(options: Layer) -> Path | None:
    """The folder of the run that the options want to go on with, if one has begun there."""
    out = Path(str(options.settings["out"]))
    return out if options.settings.get("resume") and is_begun(out) else None


def continued(cls: type[C], run: Path, layers: Sequence[Layer], overrides: Sequence[str]) -> C:
    """The configuration of a run that goes on: its own, where nothing else is said.

    Raises:
        ConfigError: they say something else that would make it another run.
        RunError: not a run folder, or one of another kind.
    """
    before = read_config(run, cls)
    own = Layer(str(run / CONFIG), yaml.safe_load(to_yaml(before)))
    cfg = load(cls, budget.latest([own, *layers], overrides))
    overridden = {word.partition("=")[0] for word in overrides}
    options = {
        key: option
        for layer in layers
        for key, option in layer.options.items()
        if key not in overridden
    }
    require_same(run, before, cfg, options)
    return cfg


def require_same(
    run: Path, before: Strict, cfg: Strict, options: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Check that a run can go on with a configuration: that it says what the run was begun with.

    Raises:
        ConfigError: names the first setting that would make it another run, of those that an option
            says (``options``: setting -> option) the first of these, and the option.
    """
    old, new = (yaml.safe_load(to_yaml(each)) for each in (before, cfg))
    found = {
        key: (then, now)
        for key, then, now in _differences(old, new, "")
        if not key.startswith(FREE)
    }
    said = [key for key in options if key in found]
    for key in [*said, *sorted(found)][:1]:
        then, now = found[key]
        source = f"{options[key]}: " if key in options else ""
        raise ConfigError(
            f"{source}{key} = {now}: the run in {run} has {then}, and cannot go on with another; "
            "leave it as it was, or choose another folder"
        )


def begin(out: Path, cfg: Strict, schema: Schema) -> None:
    """Write configuration and schema into the folder of a run, which is made if it is not there.

    Raises:
        RunError: a run is there already, or the folder cannot be written.
    """
    require_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in ((SCHEMA, schema), (CONFIG, cfg)):  # the last one begins the run
            partial = out / f".{name}.partial"
            partial.write_text(to_yaml(content), encoding="utf-8")
            to_disk(partial)
            partial.replace(out / name)
        to_disk(out)
    except OSError as err:
        raise RunError(f"{out}: cannot be written: {reason(err)}") from None


def facts_of(run: Path, schema: Schema, recipe: str) -> dict[str, Any]:
    """What the weights of a run tell of it: data and classes, and hashes of the files beside them.

    ``recipe`` is the name of that of its data.
    """
    hashes = {name: hash_of(run / name) for name in (CONFIG, SCHEMA)}
    return {"recipe": recipe, "classes": list(schema.classes), **hashes}


def hash_of(path: Path) -> str:
    """SHA-256 of a small file, but for the name of the folder: equal runs have equal weights.

    Raises:
        RunError: it cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        told = b"".join(line for line in lines if not line.startswith(b"out:"))
        return hashlib.sha256(told).hexdigest()
    except OSError as err:
        raise RunError(f"{path}: cannot be read: {reason(err)}") from None


def read_command(run: Path) -> str:
    """Which command has made a run.

    Raises:
        RunError: not a run folder.
    """
    return str(_read(run / CONFIG).get("command"))


def read_config(run: Path, cls: type[C]) -> C:
    """The resolved configuration of a run of one kind.

    Raises:
        RunError: not a run folder, or one of another kind.
    """
    raw = _read(run / CONFIG)
    wanted = cls.model_fields["command"].default
    if raw.get("command") != wanted:
        raise RunError(f"{run}: is a {raw.get('command')} run; a {wanted} run is needed here")
    return _of_this_version(run / CONFIG, cls, raw)


def read_schema(run: Path) -> Schema:
    """What the network of a run expects."""
    return _of_this_version(run / SCHEMA, Schema, _read(run / SCHEMA))


def _of_this_version(path: Path, cls: type[C], raw: Mapping[str, Any]) -> C:
    try:
        return load(cls, [Layer(str(path), raw)])
    except ConfigError as err:
        lines = sorted(str(err).splitlines(), key=lambda line: "no such setting" not in line)
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        where = "" if str(path) in lines[0] else f"{path}: "
        raise ConfigError(
            f"{where}{lines[0]}{more}; was it made by another version of jetssl?"
        ) from None


def match(schema: Schema, expected: Schema, data: str, run: Path) -> None:
    """Check that data have the columns that a network was built for (classes may differ).

    Raises:
        RunError: names the first column that does not fit.
    """
    for part in ("constituents", "ids", "jets"):
        found, wanted = getattr(schema, part), getattr(expected, part)
        if found != wanted:
            names = [[_told(column) for column in side] for side in (found, wanted)]
            raise RunError(
                f"{data}: its {part} are {', '.join(names[0])}; "
                f"{run} was trained on {', '.join(names[1])}"
            )


def _passing(path: Path) -> bool:
    """What stands in a folder before a run has begun there: a lock, and what a kill left."""
    left = (SCHEMA, *(f".{name}.partial" for name in (SCHEMA, CONFIG)))
    return path.name.startswith(lock.NAME) or path.name in left


def _told(column: Feature | str) -> str:
    """A column as an error message shows it: with all that ``match`` compares."""
    if isinstance(column, str):
        return column
    return f"{column.name} [{column.unit}]{' of charged ones' if column.charged_only else ''}"


def _read(path: Path) -> dict[str, Any]:
    if (run := path.parent).is_file():
        more = (
            f", {run.parent}" if is_begun(run.parent) else " (pickled checkpoints are never read)"
        )
        raise RunError(f"{run}: is a file; the folder of a run is needed{more}")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent}: no such run folder")
    if not path.exists():
        raise RunError(f"{path.parent}: is not a run folder: it has no {path.name}")
    return read_yaml(path)


def settings(run: Path) -> dict[str, str]:
    """The configuration of a run of any kind as flat ``section.key`` -> text.

    Raises:
        ConfigError: it is damaged.
        RunError: not a run folder.
    """
    return dict(_flat(_read(run / CONFIG), ""))


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Settings of two configurations which are not the same: the key, and what each of them has."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            here = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name), new.get(name), here)
    elif old != new:
        yield key, old, new


def _flat(node: Any, prefix: str) -> list[tuple[str, str]]:
    if not isinstance(node, dict):
        return [(prefix, str(node))]
    return [
        item
        for key, value in node.items()
        for item in _flat(value, f"{prefix}.{key}" if prefix else str(key))
    ]
