from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from jetssl_cli.data import chunks, hdf5
from jetssl_cli.data.chunks import Rows
from jetssl_cli.data.find import find
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import FIELDS, JetArrays, concatenate
from jetssl_cli.data.recipe import load_recipe, schema_of
from jetssl_cli.data.write import write
from jetssl_cli.errors import DataError

RECIPE = load_recipe("jetclass")
sizes_of_jets = st.lists(st.integers(0, 6), max_size=8)


def made_up(sizes: list[int], seed: int = 0) -> JetArrays:
    """Jets of these sizes, every number of which is different."""
    rng = np.random.default_rng(seed)
    jets, total = len(sizes), sum(sizes)
    return JetArrays(
        rng.normal(size=(total, 7)).astype(np.float32),
        rng.integers(0, 8, total).astype(np.uint8),
        np.zeros((total, 0), np.int32),
        np.array(sizes, np.int64),
        rng.normal(size=(jets, 5)).astype(np.float32),
        rng.integers(0, 10, jets).astype(np.int16),
    )


def same(a: JetArrays, b: JetArrays) -> None:
    for name in FIELDS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def each(jets: JetArrays) -> list[tuple[list[object], ...]]:
    """The jets one by one, by a plain loop over the sizes."""
    found = []
    start = 0
    for jet, size in enumerate(jets.sizes.tolist()):
        rows = slice(start, start + size)
        found.append(
            (
                jets.features[rows].tolist(),
                jets.ids[rows].tolist(),
                jets.jets[jet].tolist(),
                [int(jets.labels[jet])],
            )
        )
        start += size
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file of four jets."""
    with write(tmp_path / "good.h5", RECIPE, ["a.root"]) as writer:
        writer.append(made_up([2, 0, 3, 1]))
    return tmp_path / "good.h5"


@settings(max_examples=15)
@given(st.lists(sizes_of_jets, min_size=1, max_size=3))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, parts: list) -> None:
    path = tmp_path_factory.mktemp("round") / "below" / "x.h5"
    chunks = [made_up(sizes, seed) for seed, sizes in enumerate(parts)]
    with write(path, RECIPE, ["a.root", "b.root"]) as writer:
        for chunk in chunks:
            writer.append(chunk)
    whole = concatenate(chunks)
    with JaggedFile(path) as file:
        assert file.num_jets == len(whole)
        same(file.read(), whole)
        assert (file.recipe, file.schema) == (RECIPE, schema_of(RECIPE))
        assert file.sources == ["a.root", "b.root"]
        for size in (1, 3, 100):
            pieces = list(file.chunks(size))
            assert all(len(piece) <= size for piece in pieces)
            assert [jet for piece in pieces for jet in each(piece)] == each(whole)
        for start in range(len(whole)):
            assert each(file.read(start, start + 2)) == each(whole)[start : start + 2]
    assert [p.name for p in path.parent.iterdir()] == ["x.h5"]


@settings(max_examples=10)
@given(st.lists(st.integers(0, 25_000), max_size=8))
def test_the_bytes_do_not_tell_how_many_jets_were_appended_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    jets = made_up([3, 0, 7, 1, 2] * 5_000)
    for name, places in (("whole", []), ("cut", cuts)):
        with write(folder / name, RECIPE, ["a.root"]) as writer:
            for start, stop in pairwise([0, *sorted(places), 25_000]):
                writer.append(jets.between(start, stop))
    assert (folder / "whole").read_bytes() == (folder / "cut").read_bytes()
    with JaggedFile(folder / "cut") as file:
        same(file.read(), jets)


@given(sizes_of_jets, st.data())
def test_take_is_a_plain_loop(sizes: list[int], data: st.DataObject) -> None:
    jets = made_up(sizes)
    places = st.integers(0, max(len(sizes) - 1, 0))
    order = data.draw(st.lists(places, max_size=12)) if sizes else []
    taken = jets.take(np.array(order, np.int64))
    assert each(taken) == [each(jets)[index] for index in order]
    assert taken.offsets.tolist() == np.cumsum([0, *(sizes[i] for i in order)]).tolist()


@given(sizes_of_jets, st.integers(1, 8))
def test_first_is_a_plain_loop(sizes: list[int], most: int) -> None:
    jets = made_up(sizes)
    expected = [(f[:most], i[:most], g, label) for f, i, g, label in each(jets)]
    assert each(jets.first(most)) == expected


def test_concatenate_puts_one_part_after_the_other() -> None:
    parts = [made_up([1, 2]), made_up([]), made_up([0, 3], seed=1)]
    assert each(concatenate(parts)) == each(parts[0]) + each(parts[2])


def test_the_layout_of_the_file(path: Path) -> None:
    with h5py.File(path) as file:
        assert dict(file.attrs).keys() >= {"format", "version", "recipe", "schema", "complete"}
        assert file["offsets"][:].tolist() == [0, 2, 2, 5, 6]
        kinds = {name: file[name].dtype.str for name in ("offsets", "jets/features", "jets/labels")}
        assert kinds == {"offsets": "<i8", "jets/features": "<f4", "jets/labels": "<i2"}
        assert file["constituents/features"].dtype == np.float32
        assert file["constituents/id"].dtype == np.uint8
        assert file["constituents/features"].compression == "gzip"


def test_locking_is_off_unless_the_user_wants_it() -> None:
    assert os.environ["HDF5_USE_FILE_LOCKING"] == "FALSE" or "HDF5_USE_FILE_LOCKING" in os.environ


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        JaggedFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_file_that_is_not_one(tmp_path: Path) -> None:
    refused(tmp_path / "absent.h5", "no such file")
    for content in (b"text", b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "x.h5").write_bytes(content)
        refused(tmp_path / "x.h5", "not a readable HDF5 file")
    for content, kind in ((b"root\0\0", "ROOT"), (b"PAR1", "parquet")):
        (tmp_path / "x.h5").write_bytes(content)
        refused(tmp_path / "x.h5", f"is a {kind} file; jetssl convert makes a jagged HDF5 file of")
    (tmp_path / "x.h5").write_bytes(b"")
    refused(tmp_path / "x.h5", "is empty")
    refused(tmp_path, "is a folder, a file is needed")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["offsets"] = [0]
    refused(tmp_path / "other.h5", "is no file of jetssl; data are made by jetssl convert")


@pytest.mark.parametrize("tenths", range(10))
def test_a_truncated_file(path: Path, tenths: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * tenths // 10])
    refused(path, "not a readable HDF5 file" if tenths else "is empty")


Damage = Callable[[h5py.File], object]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.attrs.update(format="scores"), "is of the format 'scores', expected"),
        (lambda f: f.attrs.update(version=2), "has the version 2, expected 1"),
        (lambda f: f.attrs.pop("version"), "has the version None, expected 1"),
        (lambda f: f.attrs.pop("complete"), "is incomplete"),
        (lambda f: f.attrs.update(complete=False), "is incomplete"),
        (lambda f: f.attrs.pop("schema"), "damaged: the attribute 'schema' is missing"),
        (lambda f: f.attrs.update(schema="{}"), "damaged: its schema cannot be read"),
        (lambda f: f.attrs.update(schema=3), "damaged: the attribute 'schema' is missing"),
        (lambda f: f.pop("offsets"), "damaged: "),
        (lambda f: f.pop("jets/features"), "damaged: "),
        (lambda f: f.pop("jets"), "damaged: "),
        (lambda f: f.pop("constituents/id"), "damaged: "),
        (lambda f: f["offsets"].resize(4, axis=0), "damaged: "),
        (lambda f: f["offsets"].resize(0, axis=0), "damaged: "),
        (lambda f: f["jets/labels"].resize(3, axis=0), "damaged: jets/labels has the shape (3,)"),
        (lambda f: f["constituents/id"].resize(7, axis=0), "damaged: constituents/id"),
        (lambda f: f["constituents/features"].resize(5, axis=0), "damaged: constituents/features"),
        (lambda f: f["offsets"].__setitem__(0, 1), "damaged: "),
        (lambda f: f["offsets"].__setitem__(4, 5), "damaged: "),
        (lambda f: (f.pop("offsets"), f.create_group("offsets")), "damaged: "),
        (lambda f: (f.pop("jets/labels"), f.create_group("jets/labels")), "damaged: "),
    ],
)
def test_a_damaged_file_is_refused_when_it_is_opened(
    path: Path, damage: Damage, words: str
) -> None:
    with h5py.File(path, "r+") as file:
        damage(file)
    refused(path, words)


def test_decreasing_offsets_are_refused_when_they_are_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["offsets"][1] = 4
    with JaggedFile(path) as file, pytest.raises(DataError, match="offsets decrease after jet 0"):
        file.read()


def test_a_file_without_its_recipe_or_sources(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["recipe"], file["sources"]
    with JaggedFile(path) as file:
        with pytest.raises(DataError, match=r"good\.h5: damaged: the attribute 'recipe'"):
            _ = file.recipe
        with pytest.raises(DataError, match=r"good\.h5: damaged: "):
            _ = file.sources
        assert len(file.read()) == 4


def test_a_refused_file_is_closed_again(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["jets/labels"]
    refused(path)
    with h5py.File(path, "r+"):  # possible only when nobody else holds it
        pass


def break_off(path: Path, error: BaseException) -> None:
    with write(path, RECIPE, []) as writer:
        writer.append(made_up([1, 2]))
        raise error


def test_a_file_with_text_of_any_length_is_read(path: Path) -> None:
    """As files were written at first."""
    with JaggedFile(path) as file:
        wanted = file.schema, file.recipe, file.sources, file.left_out
    with h5py.File(path, "r+") as opened:
        for name, value in hdf5.attributes_of(opened).items():
            opened.attrs[name] = value
        texts = hdf5.read_texts(opened["sources"])
        del opened["sources"]
        opened.create_dataset("sources", data=texts, dtype=h5py.string_dtype())
        assert isinstance(opened.attrs["schema"], str)
    with JaggedFile(path) as file:
        file.check_attributes()
        assert (file.schema, file.recipe, file.sources, file.left_out) == wanted


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_while_writing_leaves_nothing(tmp_path: Path, error: type) -> None:
    expected = DataError if error is OSError else error
    with pytest.raises(expected):
        break_off(tmp_path / "x.h5", error("struck"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_keeps_an_older_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="struck"):
        break_off(path, ValueError("struck"))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["good.h5"]


def test_the_final_name_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with write(path, RECIPE, []) as writer:
        writer.append(made_up([1]))
        assert not path.exists()
    assert path.exists()


def test_a_left_over_partial_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".x.h5.0123abcd.partial").write_bytes(b"half of it")
    with write(tmp_path / "x.h5", RECIPE, []) as writer:
        writer.append(made_up([1]))
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_a_folder_that_another_process_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that has begun a file of a source which is bad."""
    path, mkdir, removals = tmp_path / "folder" / "x.h5", Path.mkdir, iter(range(3))

    def made_and_removed(folder: Path, *words: object, **options: object) -> None:
        mkdir(folder, *words, **options)  # type: ignore[arg-type]
        if folder == path.parent and next(removals, None) is not None:
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", made_and_removed)
    with write(path, RECIPE, []) as writer:
        writer.append(made_up([1]))
    assert path.exists()
    assert next(removals, None) is None


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.h5").mkdir()
    for path in (tmp_path / "file" / "x.h5", tmp_path / "folder.h5"):
        with pytest.raises(DataError, match="cannot be written"), write(path, RECIPE, []):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.h5"]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.booleans())
def test_tables_grow_by_any_numbers_of_rows(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], flat: bool
) -> None:
    path = tmp_path_factory.mktemp("table") / "x.h5"
    rows = [np.random.default_rng(n).normal(size=(n,) if flat else (n, 3)) for n in counts]
    with hdf5.create(path, "test", 7) as table:
        table.describe({"hello": "world", "number": 3})
        table.append_text("names", ["ä", ""])
        for part in rows:
            table.append("a/b", part)
    with hdf5.open_complete(path, "test", 7) as file:
        np.testing.assert_array_equal(file["a/b"][:], np.concatenate(rows))
        assert hdf5.attributes_of(file)["hello"] == "world"
        assert file.attrs["number"] == 3
        assert file["names"].asstr()[:].tolist() == ["ä", ""]


def test_find_names_each_file_once_in_one_order(tmp_path: Path) -> None:
    for name in ("b/2.h5", "b/1.h5", "a/train/3.h5", "a/x.txt", "c/.y.h5.partial"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in find([tmp_path], ".h5")]
    assert names == ["a/train/3.h5", "b/1.h5", "b/2.h5"]
    (tmp_path / "link.h5").symlink_to(tmp_path / "b/1.h5")
    for sources in ([tmp_path / "b/2.h5", tmp_path / "b"], [tmp_path / "b", tmp_path / "link.h5"]):
        found = find(sources, ".h5")
        assert [p.resolve().name for p in found] == ["1.h5", "2.h5"]
    with pytest.raises(DataError, match=r"c: the folder holds no \*\.h5 file"):
        find([tmp_path / "b", tmp_path / "c"], ".h5")
    with pytest.raises(DataError, match="absent: no such file or folder"):
        find([tmp_path / "absent"], ".h5")


def test_find_follows_links_to_folders_and_says_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("disk/far/1.h5", "here/2.h5", "here/.checkpoints/3.h5", "here/.4.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    here = tmp_path / "here"
    (here / "far").symlink_to(tmp_path / "disk/far")
    (here / "round").symlink_to(here)
    (here / "a").mkdir()
    (here / "a" / "link").symlink_to(here / "b")
    (here / "b/c").mkdir(parents=True)
    (here / "b/c/5.h5").touch()  # has its own name, not that behind the link
    assert find([here], ".h5") == [here / "far/1.h5", here / "2.h5", here / "b/c/5.h5"]

    def scandir(place: str) -> Iterator[os.DirEntry[str]]:
        if Path(place).name == "far":
            raise PermissionError(13, "Permission denied", str(place))
        return right(place)

    right = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="far: cannot be read: Permission denied"):
        find([here], ".h5")


def test_a_flipped_byte_is_noticed(tmp_path, jagged):
    """Wherever it lies: the file is refused, or what is read is what was written."""
    whole = (jagged / "val.h5").read_bytes()
    with JaggedFile(jagged / "val.h5") as file:
        wanted = file.read()
    refused = 0
    for place in np.random.default_rng(0).integers(len(whole), size=60):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0xFF
        path = tmp_path / "spoiled.h5"
        path.write_bytes(spoiled)
        try:
            with JaggedFile(path) as file:
                found = file.read()
        except DataError:
            refused += 1
            continue
        for name in ("features", "ids", "sizes", "jets", "labels"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert refused > 20


LAYOUTS: dict[str, dict[str, object]] = {
    "gzip": {"chunks": (7, 3), "compression": "gzip"},
    "gzip, cut across": {"chunks": (7, 2), "compression": "gzip"},
    "lzf": {"chunks": (7, 3), "compression": "lzf"},
    "gzip and shuffle": {"chunks": (7, 3), "compression": "gzip", "shuffle": True},
    "plain chunks": {"chunks": (7, 3)},
    "contiguous": {},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_that_hdf5_reads(tmp_path: Path, layout: str) -> None:
    table = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        rows = Rows(file.create_dataset("a", data=table, **LAYOUTS[layout]))
        for start in range(41):
            for stop in range(start, 44):
                assert np.array_equal(rows.read(start, stop), table[start:stop])
        assert np.array_equal(rows.read(), table)
        with pytest.raises(ValueError, match="no rows"):
            rows.read(41)


def test_a_chunk_that_was_stored_uncompressed_is_read(tmp_path: Path) -> None:
    table = np.arange(14, dtype=np.int64)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", (14,), np.int64, chunks=(7,), compression="gzip")
        data.id.write_direct_chunk((0,), table[:7].tobytes(), filter_mask=1)
        data.id.write_direct_chunk((7,), zlib.compress(table[7:].tobytes()))
        assert np.array_equal(Rows(data).read(), table)
        data.id.write_direct_chunk((7,), zlib.compress(table[8:].tobytes()))
        with pytest.raises(ValueError, match="48 bytes, expected 56"):
            Rows(data).read()


@pytest.mark.parametrize("size", [1, 3, 4, 8, 9, 16, 17, 25, 300, 40_000])
def test_chunks_are_streams_of_zlib(size: int) -> None:
    content = np.random.default_rng(0).integers(0, 4, size, np.uint8)
    assert zlib.decompress(chunks._compressed(content)) == content.tobytes()


def test_a_chunk_has_the_same_bytes_wherever_in_memory_it_is_compressed() -> None:
    """Of tables that begin with what comes again, one in 4,000 had others."""
    tables = np.random.default_rng(0).integers(0, 256, (20_000, 24, 20), np.uint8)
    tables[:, :, :8] = tables[:, :1, :8]
    found = [chunks._compressed(table) for table in tables]
    held = [isal_zlib.compressobj(chunks.GZIP_LEVEL) for _ in range(2)]  # so others lie elsewhere
    assert [chunks._compressed(table) for table in tables] == found
    del held
