"""Files to come are whole or absent, whatever goes wrong."""

import os
from pathlib import Path

import pytest

from jetssl_cli.data.place import appearing, require_place
from jetssl_cli.errors import DataError


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    with appearing(path) as partial:
        partial.write_bytes(b"whole")
        assert [p.name for p in path.parent.iterdir()] == [partial.name]
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync, replace, path = [], os.fsync, Path.replace, tmp_path / "a.bin"

    def watch(number):
        synced.append(os.fstat(number).st_ino)
        sync(number)

    def rename(old, new):
        assert synced == [old.stat().st_ino]
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(Path, "replace", rename)
    with appearing(path) as partial:
        partial.write_bytes(b"whole")
    assert path.exists()


def broken_off(partial, error):
    partial.write_bytes(b"half")
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    old, new = tmp_path / "a.bin", tmp_path / "new" / "a.bin"
    old.write_bytes(b"before")
    for path in (old, new):
        with pytest.raises(error), appearing(path) as partial:
            broken_off(partial, error)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"before"


def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "a[1].bin"
    left = tmp_path / ".a[1].bin.0123abcd.partial"
    other = tmp_path / ".a1.bin.0123abcd.partial"
    left.write_bytes(b"half")
    other.write_bytes(b"of another file")
    with appearing(path) as partial:
        partial.write_bytes(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([other, path])


def test_a_place_where_no_file_can_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "a.bin"
    told = rf"{path}: cannot be written: (Not a directory|File exists)$"
    with pytest.raises(DataError, match=told), appearing(path) as partial:
        partial.write_bytes(b"")
    with pytest.raises(DataError, match=told):
        require_place(path)
    require_place(tmp_path / "new" / "a.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
