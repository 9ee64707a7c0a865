"""Weights that were fitted on data files, kept beside them: safetensors with a key, no pickle.

A cache saves time and nothing else: where none can be written, or what lies there is damaged, the
work is done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from jetssl_cli.errors import DataError, printable

M = TypeVar("M", bound=nn.Module)

DIGITS_IN_NAME = 16
"""Digits of the key that the name of a cache file shows; the whole key is inside."""


def digest(*parts: str | int | NDArray[Any]) -> str:
    """SHA-256 over texts, numbers and arrays, with their types and shapes, as 64 digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, body = f"array {part.dtype.str} {part.shape}", part.tobytes()
        else:
            head, body = type(part).__name__, str(part).encode()
        total.update(f"{head} {len(body)}\n".encode())
        total.update(body)
    return total.hexdigest()


def place(beside: Path, kind: str, key: str) -> Path:
    """Where the cache of this kind and key lies: a hidden file beside the data file."""
    return beside.with_name(f".{beside.stem}.{kind}-{key[:DIGITS_IN_NAME]}.safetensors")


def cached(
    beside: Path, kind: str, key: str, *, empty: M, fit: Callable[[], M], keep: bool = True
) -> M:
    """What ``fit`` returns, read from the cache where it is there.

    Args:
        beside: data file whose folder keeps the cache.
        kind: what is cached, a word of the file's name.
        key: digest of all that determines the fit.
        empty: module of the right shapes and types, into which a cache is loaded.
        fit: makes the module; called only where there is no cache that can be trusted.
        keep: write what was fitted.
    """
    path = place(beside, kind, key)
    weights = _read(path, kind, key, empty.state_dict())
    if weights is not None:
        empty.load_state_dict(weights)
        return empty
    fitted = fit()
    if keep:
        _write(path, kind, key, fitted.state_dict())
    return fitted


def verify_cache(path: Path) -> str | None:
    """Read a cache, and say what it is; None if the file is none, or not readable.

    Raises:
        DataError: it holds something else than was written.
    """
    try:
        metadata, weights = _load(path)
    except (OSError, SafetensorError):
        return None
    if metadata is None or "kind" not in metadata or "key" not in metadata:
        return None
    kind, key = metadata["kind"], metadata["key"]
    whole = metadata == _metadata(kind, key, weights)
    if not whole or not all(value.isfinite().all() for value in weights.values()):
        raise DataError(f"{path}: damaged: it is a cache; without it, the fit is made again")
    count = sum(value.numel() for value in weights.values())
    return f"cache of a {printable(kind)}, {count:,} numbers, key {printable(key)[:DIGITS_IN_NAME]}"


def _read(path: Path, kind: str, key: str, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights in a cache file; None if it is absent, damaged or of something else."""
    try:
        metadata, weights = _load(path)
    except (OSError, SafetensorError):
        return None
    whole = (
        metadata == _metadata(kind, key, weights)
        and weights.keys() == like.keys()
        and all(_alike(weights[name], like[name]) for name in like)
    )
    return weights if whole else None


def _load(path: Path) -> tuple[dict[str, str] | None, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), weights


def _alike(found: Tensor, wanted: Tensor) -> bool:
    same = found.shape == wanted.shape and found.dtype == wanted.dtype
    return same and bool(found.isfinite().all())


def _write(path: Path, kind: str, key: str, weights: Mapping[str, Tensor]) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    put(path, save(plain, metadata=_metadata(kind, key, plain)))


def put(path: Path, content: bytes) -> None:
    """Write a cache file that appears only when it is complete; not at all where it cannot be."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        return
    finally:
        with suppress(OSError):
            partial.unlink()


def _metadata(kind: str, key: str, weights: Mapping[str, Tensor]) -> dict[str, str]:
    parts: list[str | NDArray[Any]] = []
    for name in sorted(weights):
        parts += [name, weights[name].reshape(-1).view(torch.uint8).numpy()]
    return {"format": "pt", "kind": kind, "key": key, "content": digest(*parts)}
