from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from damage import cut, empty, flip, folder_instead, garbage, half
from fuzz import mutate
from hypothesis import given, settings
from hypothesis import strategies as st

from jetssl_cli.data import facts
from jetssl_cli.data.facts import FACTS, keep_known, known, seen


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered without a wait."""
    monkeypatch.setattr(facts, "SECONDS_UNTOUCHED", 0.0)


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
    facts._memory.cache_clear()


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
    ours = dict(facts._memory(tmp_path))
    another_process()
    for path in (b, c, d):
        told(path)
    keep_known([b])
    c.unlink()
    later()
    d.write_text("other")
    another_process()
    facts._memory(tmp_path).clear()  # as of a process that began before
    facts._memory(tmp_path).update(ours)
    keep_known([a])
    assert facts._remembered(tmp_path).keys() == {"a.h5", "b.h5"}
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
    monkeypatch.setattr(facts, "FACTS_VERSION", facts.FACTS_VERSION + 1)
    assert told(data) == ["read", "first"]


@pytest.mark.usefixtures("at_once")
def test_changed_facts_are_those_that_were_kept_or_none(data: Path) -> None:
    told(data)
    keep_known([data])
    path, whole = data.with_name(FACTS), facts._remembered(data.parent)
    content = path.read_bytes()
    assert whole

    @settings(max_examples=200, derandomize=True, database=None)
    @given(st.integers(0, 2**32), st.integers(1, 3))
    def check(seed: int, times: int) -> None:
        rng, changed = Random(seed), content
        for _ in range(times):
            changed = mutate.text(changed, rng, valid=False)
        path.write_bytes(changed)
        assert facts._remembered(data.parent) == (whole if changed == content else {})

    check()
