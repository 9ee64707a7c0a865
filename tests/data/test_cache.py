from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from fuzz import mutate
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from jetssl_cli.data import cache
from jetssl_cli.data.cache import FACTS, cached, digest, keep_known, known, place, seen

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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(500))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


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


def half(path: Path, content: bytes) -> None:
    """What a full disk takes."""
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(28, "No space left on device")


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


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered without a wait."""
    monkeypatch.setattr(cache, "SECONDS_UNTOUCHED", 0.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "a.h5"
    path.write_text("first")
    return path


def told(path: Path, fact: str = "content") -> list[str]:
    """The content of a file, and whether it was read for this."""
    found = ["known"]

    def read() -> list[str]:
        found[0] = "read"
        return [path.read_text()]

    return found + known(path, fact, read)


def another_process() -> None:
    cache._memory.cache_clear()


def later() -> None:
    """Let the clock of the file system go on."""
    time.sleep(0.05)


@pytest.mark.usefixtures("at_once")
def test_a_file_is_read_once_for_each_fact(data: Path) -> None:
    assert told(data) == ["read", "first"]
    assert told(data) == ["known", "first"]
    assert told(data, "another") == ["read", "first"]
    assert told(data) == ["known", "first"]


def rewrite(path: Path) -> None:
    path.write_text("other")


def rewrite_with_its_date(path: Path) -> None:
    before = path.stat()
    path.write_text("other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("other")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("change", [rewrite, rewrite_with_its_date, replace])
def test_a_changed_file_is_read_again(data: Path, change: Callable[[Path], None]) -> None:
    """All of them leave its size."""
    told(data)
    told(data, "another")
    keep_known([data])
    later()
    change(data)
    assert told(data) == ["read", "other"]
    another_process()
    assert told(data) == ["read", "other"]
    assert told(data, "another") == ["read", "other"]


def test_a_file_that_was_just_written_could_be_changed_within_its_date(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(data) == told(data) == ["read", "first"]
    keep_known([data])
    assert not data.with_name(FACTS).exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11)
    assert told(data) == ["read", "first"]
    assert told(data) == ["known", "first"]
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    ahead = data.with_name("b.h5")
    ahead.write_text("first")
    assert told(ahead) == told(ahead) == ["read", "first"]


@pytest.mark.usefixtures("at_once")
def test_what_is_kept_beside_the_files_is_known_to_other_processes(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    link = folder / "link.h5"
    link.symlink_to(data)
    assert told(data) == told(link) == ["read", "first"]
    keep_known([data, link])
    another_process()
    assert told(data) == told(link) == ["known", "first"]
    moved = folder.rename(tmp_path / "moved") / link.name
    assert told(moved) == ["known", "first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FACTS, "a.h5", "moved"]


@pytest.mark.usefixtures("at_once")
def test_what_others_have_kept_stays_as_long_as_its_file(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / f"{name}.h5" for name in "abcd")
    for path in (a, b, c, d):
        path.write_text(path.name)
    told(a)
    ours = dict(cache._memory(tmp_path))
    another_process()
    for path in (b, c, d):
        told(path)
    keep_known([b])
    c.unlink()
    later()
    d.write_text("other")
    another_process()
    cache._memory(tmp_path).clear()  # as of a process that began before
    cache._memory(tmp_path).update(ours)
    keep_known([a])
    assert cache._remembered(tmp_path).keys() == {"a.h5", "b.h5"}
    written = tmp_path.joinpath(FACTS).stat()
    keep_known([a, b])
    assert tmp_path.joinpath(FACTS).stat() == written  # there was nothing new


def test_a_file_that_is_not_there_is_told_by_who_reads_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        told(tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        seen(tmp_path / "none.h5")
    keep_known([tmp_path / "none.h5", tmp_path / "no folder" / "a.h5"])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_once")
def test_facts_that_cannot_be_written_are_found_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", half)
    told(data)
    keep_known([data])
    assert told(data) == ["known", "first"]
    another_process()
    assert told(data) == ["read", "first"]
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("damage", [cut, empty, garbage, flip, folder_instead])
def test_damaged_facts_are_found_again(data: Path, damage: Callable[[Path], None]) -> None:
    told(data)
    keep_known([data])
    damage(data.with_name(FACTS))
    another_process()
    assert told(data) == ["read", "first"]
    keep_known([data])
    another_process()
    assert told(data) == (["read", "first"] if damage is folder_instead else ["known", "first"])


@pytest.mark.usefixtures("at_once")
def test_facts_of_another_version_are_found_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(data)
    keep_known([data])
    another_process()
    monkeypatch.setattr(cache, "FACTS_VERSION", cache.FACTS_VERSION + 1)
    assert told(data) == ["read", "first"]


@pytest.mark.usefixtures("at_once")
def test_changed_facts_are_those_that_were_kept_or_none(data: Path) -> None:
    told(data)
    keep_known([data])
    path, whole = data.with_name(FACTS), cache._remembered(data.parent)
    content = path.read_bytes()
    assert whole

    @settings(max_examples=200, derandomize=True, database=None)
    @given(st.integers(0, 2**32), st.integers(1, 3))
    def check(seed: int, times: int) -> None:
        rng, changed = Random(seed), content
        for _ in range(times):
            changed = mutate.text(changed, rng, valid=False)
        path.write_bytes(changed)
        assert cache._remembered(data.parent) == (whole if changed == content else {})

    check()
