"""A file of weights: safetensors, and what they tell of themselves.

Never a pickle: reading weights executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jetssl_cli import __version__
from jetssl_cli.data.place import to_disk
from jetssl_cli.encoder.lora import plain_state
from jetssl_cli.errors import RunError, printable, reason
from jetssl_cli.runs.snapshot import FACTS, HASH, content_hash

LAYOUT = "1"
"""Of the weights: counted up when a network of the same config has other weights."""
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How pickles begin, in the zip files of ``torch.save`` and bare."""
UNREADABLE = (OSError, SafetensorError, ValueError, TypeError, RecursionError)
"""What reading safetensors may raise."""


def save(
    path: Path,
    trained: nn.Module | Mapping[str, Tensor],
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Save the weights of a module, or kept ones; the file appears only when it is complete.

    Beside ``about`` it tells its layout, the version of jetssl, and a hash of all. This is one key
    of the metadata: the order of several would differ from file to file.

    Raises:
        RunError: the file cannot be written.
    """
    state = plain_state(trained) if isinstance(trained, nn.Module) else trained
    weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    facts = {"layout": LAYOUT, "code": __version__, **about}
    facts[HASH] = content_hash(weights, json.dumps(facts))
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(weights, partial, metadata={FACTS: json.dumps(facts)})
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read
        to_disk(partial)
        partial.replace(path)
        to_disk(path.parent)
    except (OSError, SafetensorError) as err:
        raise RunError(f"{path}: cannot be written: {reason(err)}") from None
    finally:
        with suppress(OSError):  # never made, or where no file can be
            partial.unlink()


def restore(path: Path, module: nn.Module) -> None:
    """Load weights into a module of the same shape.

    Raises:
        RunError: no such file, not safetensors, or weights of another network or version.
    """
    if not path.exists():
        raise RunError(f"{path}: no such file; did the run come to its end?")
    weights, _ = read_weights(path)
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


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file, and what it tells of them; nothing in it is executed.

    Raises:
        RunError: not safetensors, of another version, or not what was saved.
    """
    facts = read_facts(path)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except UNREADABLE as err:
        raise RunError(f"{path}: not a readable safetensors file: {reason(err)}") from None
    told = {key: value for key, value in facts.items() if key != HASH}
    if HASH in facts and facts[HASH] != content_hash(weights, json.dumps(told)):
        raise RunError(f"{path}: is damaged: its hash is not that of its content")
    return weights, facts


def read_facts(path: Path) -> dict[str, Any]:
    """What a file of weights tells of them; the weights themselves are not read.

    Raises:
        RunError: not safetensors, or of another version.
    """
    if is_pickle(path):
        raise RunError(
            f"{path}: not a readable safetensors file: it is a pickle, which can run any code and "
            "is never opened"
        )
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
        facts = dict(json.loads(said[FACTS])) if FACTS in said else dict(said)
    except UNREADABLE as err:
        raise RunError(f"{path}: not a readable safetensors file: {reason(err)}") from None
    layout = facts.get("layout")
    if layout != LAYOUT:
        found = [printable(f"{word}")[:40] for word in (layout, facts.get("code", "unknown"))]
        raise RunError(
            f"{path}: has weights of layout {found[0]}, expected {LAYOUT}: it was saved by another "
            f"version of jetssl ({found[1]}; this is {__version__})"
        )
    return facts


def is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, and not as safetensors: its size, then JSON."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head.startswith(PICKLES) and not head.endswith(b"{")
