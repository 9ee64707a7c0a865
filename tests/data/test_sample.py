from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from reference.tracks import write_true_jets

from jetssl_cli.data import facts
from jetssl_cli.data.cache import digest
from jetssl_cli.data.facts import keep_known
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import concatenate
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.sample import Sample, look
from jetssl_cli.data.watch import Watch
from jetssl_cli.data.write import write
from jetssl_cli.errors import DataError
from jetssl_cli.runs.prepared import note_single_class


@pytest.fixture
def file(jagged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(jagged / "train.h5", tmp_path / "train.h5"))


def test_first_jets_of_one_class_are_noticed(
    jagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that hold one class each and were not merged."""
    with JaggedFile(jagged / "train.h5") as opened:
        whole, recipe, classes = opened.read(), opened.recipe, opened.schema.classes
    files = [tmp_path / f"{label}.h5" for label in (3, 5)]
    for path, label in zip(files, (3, 5), strict=True):
        with write(path, recipe, []) as writer:
            writer.append(whole.take(np.flatnonzero(whole.labels == label)))
    with JaggedFile(files[0]) as opened:
        size = opened.num_jets
    assert Sample(files, num_jets=size).only_class() == classes[3]
    assert Sample(files, num_jets=size + 1).only_class() is None
    assert Sample(files[:1]).only_class() == classes[3]
    assert Sample([jagged / "train.h5"], num_jets=50).only_class() is None
    note_single_class(Sample(files, num_jets=7))
    told = f"the first 7 jets, which alone are used here, are all {classes[3]}"
    assert told in capsys.readouterr().err
    note_single_class(Sample(files[:1]))  # there are no others
    assert not capsys.readouterr().err


@pytest.mark.parametrize("most", [None, 5])
@pytest.mark.parametrize("num_jets", [1, 250, 1300, 1301, None])
def test_a_sample_is_the_first_jets_of_the_files_taken_together(
    jagged: Path, monkeypatch: pytest.MonkeyPatch, num_jets: int | None, most: int | None
) -> None:
    monkeypatch.setattr("jetssl_cli.data.sample.JETS_PER_READ", 300)
    files = [jagged / "train.h5", jagged / "val.h5"]
    jets = []
    for path in files:
        with JaggedFile(path) as opened:
            jets.append(opened.read())
    whole = concatenate(jets)
    wanted = whole.between(0, min(num_jets or len(whole), len(whole))).first(most or 10**6)
    sample = Sample(files, num_jets=num_jets, max_constituents=most)
    chunks = list(sample.chunks())
    found = concatenate(chunks)
    assert max(map(len, chunks)) <= 300
    assert sample.num_jets == len(wanted)
    assert sample.num_constituents == len(wanted.ids)
    assert np.array_equal(found.features, wanted.features)
    assert np.array_equal(found.sizes, wanted.sizes)
    assert np.array_equal(found.jets, wanted.jets)


def test_a_file_without_jets(jagged: Path, tmp_path: Path) -> None:
    with JaggedFile(jagged / "train.h5") as source:
        nothing = source.read(0, 0)
    with write(tmp_path / "none.h5", load_recipe("jetclass"), []) as writer:
        writer.append(nothing)
    with pytest.raises(DataError, match=r"none\.h5"):
        Sample([tmp_path / "none.h5"])


def test_the_name_tells_of_all_files(jagged: Path) -> None:
    train, val = jagged / "train.h5", jagged / "val.h5"
    assert Sample([train]).name == str(train)
    assert Sample([train, val]).name == f"{train} and 1 more"


def defined(parts: list[tuple[Path, int]], most: int | None) -> str:
    """The fingerprint of the first jets of some files, as it always was: runs have noted it."""
    heads, jets = [], []
    for path, size in parts:
        with JaggedFile(path) as opened:
            schema = opened.schema.model_dump_json()
            heads.append(digest(schema, opened.recipe_text, opened.precision, size))
            for start in sorted({max(size - 64, 0) * index // 31 for index in range(32)}):
                probe = opened.read(start, min(start + 64, size))
                truth = [probe.truth] if opened.schema.truth else []
                heads.append(digest(probe.features, probe.ids, probe.labels, *truth))
            for start in range(0, size, 10_000):
                part = opened.read(start, min(start + 10_000, size))
                jets.append(digest(part.sizes, part.jets))
    return digest(str(most), *heads, *jets)


def test_fingerprints_are_what_they_were_and_those_that_are_known_read_no_file(
    file: Path, jagged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "SECONDS_UNTOUCHED", 0.0)
    true = write_true_jets(file.with_name("true.h5"), 300, 7)
    long = file.with_name("long.h5")
    with JaggedFile(file) as source, write(long, source.recipe, []) as writer:
        for _ in range(8):
            writer.append(source.read())
    val = Path(shutil.copy(jagged / "val.h5", file.with_name("val.h5")))
    wanted = {
        Sample([long, file, val], max_constituents=20): ([10_400, 1300, 200], 20),
        Sample([file, val, long], num_jets=1400): ([1300, 100, 0], None),
        Sample([long]): ([10_400], None),
        Sample([true]): ([300], None),
    }
    for sample, (sizes, most) in wanted.items():
        parts = list(zip(sample.files, sizes, strict=True))
        assert sample.fingerprint == defined(parts, most)
    keep_known([file])
    known = [sample.fingerprint for sample in wanted]
    watch = Watch([long, true])

    facts._memory.cache_clear()
    monkeypatch.setattr(JaggedFile, "__init__", None)  # none can be opened
    again = [
        Sample(sample.files, num_jets=sample.num_jets, max_constituents=sample.max_constituents)
        for sample in wanted
    ]
    assert [sample.fingerprint for sample in again] == known
    assert [sample.schema for sample in again] == [sample.schema for sample in wanted]
    assert Watch([long, true]).fingerprints == watch.fingerprints
    assert look([file, val])[1] == [1300, 200]


def test_the_fingerprint_is_that_of_the_contents(file: Path, jagged: Path) -> None:
    wanted = Sample([jagged / "train.h5"], num_jets=300).fingerprint
    moved = file.rename(file.with_name("other.h5"))
    assert Sample([moved], num_jets=300).fingerprint == wanted
    others = [
        Sample([moved], num_jets=299),
        Sample([moved]),
        Sample([moved], num_jets=300, max_constituents=20),
        Sample([jagged / "val.h5"], num_jets=300),
        Sample([jagged / "val.h5", moved], num_jets=300),
        Sample([moved, jagged / "val.h5"]),
    ]
    assert len({wanted, *(sample.fingerprint for sample in others)}) == len(others) + 1


def test_jets_beyond_the_sample_do_not_matter(file: Path) -> None:
    with JaggedFile(file) as source:
        jets, total = source.read(0, 300), source.num_jets
        with write(file.with_name("short.h5"), source.recipe, []) as writer:
            writer.append(jets)
    short = file.with_name("short.h5")
    assert Sample([short]).fingerprint == Sample([file], num_jets=300).fingerprint
    every = Sample([file], num_jets=10 * total).fingerprint
    assert every == Sample([file]).fingerprint


def change(name: str, index: object, by: float) -> Callable[[h5py.File], None]:
    def apply(opened: h5py.File) -> None:
        opened[name][index] = opened[name][index] + by

    return apply


def move_a_constituent(opened: h5py.File) -> None:
    opened["offsets"][100] = opened["offsets"][100] + 1


def rename_the_recipe(opened: h5py.File) -> None:
    opened.attrs["recipe"] = opened.attrs["recipe"] + b"\n"


@pytest.mark.parametrize(
    "edit",
    [
        change("jets/features", (299, 0), 1),
        change("constituents/features", (0, 3), 1),
        change("constituents/features", (slice(None), 4), 1e-3),
        change("constituents/id", 5, 1),
        move_a_constituent,
        rename_the_recipe,
    ],
)
def test_a_changed_file_has_another_fingerprint(
    file: Path, edit: Callable[[h5py.File], None]
) -> None:
    before = Sample([file], num_jets=300).fingerprint
    with h5py.File(file, "r+") as opened:
        edit(opened)
    assert Sample([file], num_jets=300).fingerprint != before


def test_other_truth_gives_another_fingerprint(tmp_path: Path) -> None:
    path = write_true_jets(tmp_path / "jets.h5", 300, 7)
    before, watch = Sample([path]).fingerprint, Watch([path])
    with h5py.File(path, "r+") as opened:
        opened["constituents/truth"][40, 1] += 1
    assert Sample([path]).fingerprint != before
    with pytest.raises(DataError, match=r"jets\.h5: was changed while the run reads it"):
        watch.check(0)


def test_constituents_all_over_a_large_file_enter_the_fingerprint(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No probe covers all jets, yet a formula that gives other values is noticed anywhere."""
    monkeypatch.setattr("jetssl_cli.data.sample.JETS_PER_PROBE", 8)
    seen = {Sample([file]).fingerprint}
    with JaggedFile(file) as source:
        offsets = np.cumsum([0, *source.read().sizes])
    for tenth in range(10):
        rows = slice(offsets[tenth * 130], offsets[(tenth + 1) * 130])
        with h5py.File(file, "r+") as opened:
            opened["constituents/features"][rows] *= 2
        seen.add(Sample([file]).fingerprint)
    assert len(seen) == 11
