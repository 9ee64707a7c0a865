"""Whether the folder of a run is sound: configuration, schema, weights, measurements, snapshots."""

from __future__ import annotations

import json
from pathlib import Path

from jetssl_cli.data.scaling import Scaling
from jetssl_cli.errors import RunError, reason
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.finetune import load_finetuned
from jetssl_cli.runs.pretrain import build_encoder, load_pretrained
from jetssl_cli.runs.snapshot import HASH, CheckpointConfig, Snapshots, read


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, or of what is left of one."""
    return any((path / name).is_file() for name in (checkpoint.CONFIG, checkpoint.MODEL))


def verify_run(run: Path) -> str:
    """Read all that is in the folder of a run, and say what it holds.

    Raises:
        ConfigError: its configuration or schema is not one of this version.
        RunError: a part is missing, damaged, of another version or of another run.
    """
    command = checkpoint.read_command(run)
    _measurements(run / checkpoint.METRICS, complete=checkpoint.is_complete(run))
    files = Snapshots(run, CheckpointConfig()).files()
    steps = [int(read(path).facts["steps"]) for path in files]
    if not checkpoint.is_complete(run):
        checkpoint.read_schema(run)
        latest = f"snapshot after step {max(steps)}" if steps else "no snapshot yet"
        return f"{command} run, not at its end, {latest}"
    if command == "pretrain":
        cfg, schema, _ = load_pretrained(run)
        encoder = build_encoder(cfg.encoder.anywhere, Scaling.unfitted(schema), schema)
        weightfile.restore(run / checkpoint.BACKBONE, encoder)
        told = [verify_weights(run / name) for name in (checkpoint.MODEL, checkpoint.BACKBONE)]
        return f"pretrain run of {cfg.objective.name}: {'; '.join(told)}"
    if command == "finetune":
        finetuned, _, _ = load_finetuned(run)
        told = [verify_weights(run / checkpoint.MODEL)]
        return f"finetune run of {finetuned.objective.name}: {'; '.join(told)}"
    raise RunError(f"{run / checkpoint.CONFIG}: command = {command}: is no command that trains")


def verify_weights(path: Path) -> str:
    """Read a file of weights, compare it with the files of its folder, and say what it holds.

    Raises:
        RunError: it is damaged, of another version, or of another run than its folder.
    """
    weights, facts = weightfile.read_weights(path)
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(f"{path}: {name} holds values that are not finite")
    for name in (checkpoint.CONFIG, checkpoint.SCHEMA):
        beside = path.with_name(name)
        if name in facts and beside.is_file() and checkpoint.hash_of(beside) != facts[name]:
            raise RunError(
                f"{path}: belongs to another {name} than the one beside it: one of them was "
                "changed or swapped"
            )
    count = sum(value.numel() for value in weights.values())
    told = f"{path.name} with {count:,} numbers, layout {weightfile.LAYOUT}"
    if HASH not in facts:
        return f"{told}, saved without a hash by an earlier version"
    recipe = f", recipe {facts['recipe']}" if "recipe" in facts else ""
    return f"{told}, jetssl {facts['code']}{recipe}, hash {facts[HASH][:16]}"


def _measurements(path: Path, *, complete: bool) -> None:
    """Raises RunError where a line of the measurements is not one.

    The last line of a run that was killed may be half a line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as err:
        raise RunError(f"{path}: cannot be read: {reason(err)}") from None
    for number, line in enumerate(lines, start=1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole and (complete or number < len(lines)):
            raise RunError(f"{path}: line {number} is not a measurement")
