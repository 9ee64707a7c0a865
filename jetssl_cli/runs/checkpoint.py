"""A run folder: the resolved configuration, what the network expects, and its weights.

    config.yaml           the resolved configuration; enough to run again
    schema.yaml           columns, units and classes that the network was built for
    model.safetensors     everything that was trained, and the scaling
    backbone.safetensors  the encoder worth keeping (of a pretraining)
    metrics.jsonl         one line per measurement

Weights are safetensors, never a pickle: reading a run executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jetssl_cli.config import Layer, Strict, load, read_yaml, to_yaml
from jetssl_cli.data.recipe import Feature, Schema
from jetssl_cli.errors import RunError

MODEL = "model.safetensors"
BACKBONE = "backbone.safetensors"
CONFIG = "config.yaml"
SCHEMA = "schema.yaml"

C = TypeVar("C", bound=Strict)


def require_free(out: Path) -> None:
    """Check that a run may begin in this folder.

    Raises:
        RunError: something is there already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is there already; choose another folder for this run")


def begin(out: Path, cfg: Strict, schema: Schema) -> None:
    """Make the folder of a run, with its configuration and schema.

    Raises:
        RunError: a run is there already, or the folder cannot be made.
    """
    require_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).write_text(to_yaml(cfg), encoding="utf-8")
        (out / SCHEMA).write_text(to_yaml(schema), encoding="utf-8")
    except OSError as err:
        raise RunError(f"{out}: cannot be written: {err}") from None


def save(path: Path, trained: nn.Module | Mapping[str, Tensor]) -> None:
    """Save the weights of a module, or kept ones; the file appears only when it is complete.

    Raises:
        RunError: the file cannot be written.
    """
    state = trained.state_dict() if isinstance(trained, nn.Module) else trained
    weights = {name: value.detach().contiguous() for name, value in state.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(weights, partial, metadata={"format": "pt"})
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read
        partial.replace(path)
    except (OSError, SafetensorError) as err:
        raise RunError(f"{path}: cannot be written: {err}") from None
    finally:
        partial.unlink(missing_ok=True)


def restore(path: Path, module: nn.Module) -> None:
    """Load weights into a module of the same shape.

    Raises:
        RunError: no such file, not safetensors, or weights of another network.
    """
    if not path.exists():
        raise RunError(f"{path}: no such file; did the run come to its end?")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as err:
        raise RunError(f"{path}: not a readable safetensors file: {err}") from None
    expected = module.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            where = "lacks" if name not in weights else "has the unexpected"
            raise RunError(f"{path}: {where} weights {name!r}; saved from another network")
        if weights[name].shape != expected[name].shape:
            raise RunError(
                f"{path}: {name} has the shape {tuple(weights[name].shape)}, expected "
                f"{tuple(expected[name].shape)}; saved from another network"
            )
    module.load_state_dict(weights)


def read_config(run: Path, cls: type[C]) -> C:
    """The resolved configuration of a run of one kind.

    Raises:
        RunError: not a run folder, or one of another kind.
    """
    raw = _read(run / CONFIG)
    wanted = cls.model_fields["command"].default
    if raw.get("command") != wanted:
        raise RunError(f"{run}: is a {raw.get('command')} run; a {wanted} run is needed here")
    return load(cls, [Layer(str(run / CONFIG), raw)])


def read_schema(run: Path) -> Schema:
    """What the network of a run expects."""
    return load(Schema, [Layer(str(run / SCHEMA), _read(run / SCHEMA))])


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


def _told(column: Feature | str) -> str:
    """A column as an error message shows it: with all that ``match`` compares."""
    if isinstance(column, str):
        return column
    return f"{column.name} [{column.unit}]{' of charged ones' if column.charged_only else ''}"


def _read(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise RunError(f"{path.parent}: no such run folder")
    if not path.exists():
        raise RunError(f"{path.parent}: is not a run folder: it has no {path.name}")
    return read_yaml(path)


def plain(cfg: Strict) -> dict[str, str]:
    """A config as flat ``section.key`` -> text, for tracking."""
    return dict(_flat(yaml.safe_load(to_yaml(cfg)), ""))


def _flat(node: Any, prefix: str) -> list[tuple[str, str]]:
    if not isinstance(node, dict):
        return [(prefix, str(node))]
    return [
        item
        for key, value in node.items()
        for item in _flat(value, f"{prefix}.{key}" if prefix else str(key))
    ]
