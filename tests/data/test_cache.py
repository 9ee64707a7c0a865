from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import cut, empty, flip, folder_instead, garbage, half
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from jetssl_cli.data.cache import cached, digest, place

KEY = digest("key")


class Weights(nn.Module):
    """Something that is fitted."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)


class Fit:
    """Counts how often it is made."""

    def __init__(self, start: float = 0.0) -> None:
        self.times, self.start = 0, start

    def __call__(self) -> Weights:
        self.times += 1
        return Weights(torch.linspace(self.start, 1, 12, dtype=torch.float64).view(3, 4))


def get(folder: Path, fit: Fit, *, kind: str = "numbers", key: str = KEY) -> torch.Tensor:
    empty = Weights(torch.zeros(3, 4, dtype=torch.float64))
    return cached(folder / "train.h5", kind, key, empty=empty, fit=fit).values


def test_what_was_fitted_once_is_read(tmp_path: Path) -> None:
    fit = Fit()
    first, second = get(tmp_path, fit), get(tmp_path, fit)
    assert fit.times == 1
    assert torch.equal(first, second)
    assert second.dtype == torch.float64
    assert [path.name for path in tmp_path.iterdir()] == [f".train.numbers-{KEY[:16]}.safetensors"]


def test_another_kind_or_key_is_fitted_anew(tmp_path: Path) -> None:
    fit = Fit()
    near = KEY[:16] + digest("other")[16:]  # a file of the same name
    for words in ({}, {"kind": "words"}, {"key": digest("other")}, {"key": near}, {}):
        get(tmp_path, fit, **words)
    assert fit.times == 5


def rewritten(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], None],
) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        weights = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        change(weights, metadata)
        save_file(weights, path, metadata=metadata)

    return damage


DAMAGES = {
    "cut": cut,
    "empty": empty,
    "garbage": garbage,
    "flipped bit": flip,
    "a folder": folder_instead,
    "other numbers": rewritten(lambda w, _: w["values"].mul_(2)),
    "a tensor more": rewritten(lambda w, _: w.update(more=torch.ones(2))),
    "no tensor": rewritten(lambda w, _: w.clear()),
    "another kind": rewritten(lambda _, m: m.update(kind="words")),
    "another key": rewritten(lambda _, m: m.update(key="0")),
    "no sum": rewritten(lambda _, m: m.update(content="")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_not_trusted(tmp_path: Path, damage: str) -> None:
    fit = Fit()
    wanted = get(tmp_path, fit).clone()
    DAMAGES[damage](place(tmp_path / "train.h5", "numbers", KEY))
    assert torch.equal(get(tmp_path, fit), wanted)
    assert fit.times == 2
    if damage != "a folder":
        get(tmp_path, fit)
        assert fit.times == 2  # it was mended
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((3, 4), torch.nan, dtype=torch.float64),
        torch.zeros(3, 4),
        torch.zeros(4, 3, dtype=torch.float64),
    ],
)
def test_a_cache_with_a_right_sum_must_still_fit(tmp_path: Path, wrong: torch.Tensor) -> None:
    cached(tmp_path / "train.h5", "numbers", KEY, empty=Weights(wrong), fit=lambda: Weights(wrong))
    fit = Fit()
    get(tmp_path, fit)
    assert fit.times == 1


def test_a_folder_that_cannot_be_written_costs_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    fit = Fit()
    assert torch.equal(get(tmp_path, fit), Fit()().values)
    get(tmp_path, fit)
    assert fit.times == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    get(tmp_path, Fit())
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o700)


def test_a_write_that_breaks_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", half)
    get(tmp_path, Fit())
    assert not list(tmp_path.iterdir())


def test_a_fit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Weights:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "a.h5", "numbers", KEY, empty=Weights(torch.zeros(1)), fit=fail)
    assert not list(tmp_path.iterdir())


def test_digests_tell_types_shapes_and_borders_apart() -> None:
    zeros = np.zeros(6, np.float32)
    parts = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("1",),
        (1,),
        (zeros,),
        (zeros.reshape(2, 3),),
        (zeros.view(np.int32),),
        (zeros[:3], zeros[3:]),
    ]
    found = [digest(*part) for part in parts]
    assert len(set(found)) == len(parts)
    assert all(len(one) == 64 for one in found)
    assert digest(np.arange(6)[::2]) == digest(np.array([0, 2, 4]))
