from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from jetssl_cli.data import merge as module
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.merge import MergeConfig, MergeReport, merge
from jetssl_cli.data.recipe import Recipe, load_recipe
from jetssl_cli.data.shuffle import Buckets, checksum
from jetssl_cli.data.workers import peak_memory
from jetssl_cli.data.write import write
from jetssl_cli.errors import DataError

RECIPE = load_recipe("jetclass")


def jets_of(first: int, count: int) -> JetArrays:
    """Jets that carry their number in every value."""
    number = np.arange(first, first + count)
    sizes = number % 4
    of_tokens = np.repeat(number, sizes)
    return JetArrays(
        np.repeat(of_tokens[:, None], 7, axis=1).astype(np.float32),
        (of_tokens % 8).astype(np.uint8),
        np.zeros((len(of_tokens), 0), np.int32),
        sizes.astype(np.int64),
        np.repeat(number[:, None], 5, axis=1).astype(np.float32),
        (number % 10).astype(np.int16),
    )


def save(path: Path, first: int, count: int, recipe: Recipe = RECIPE) -> Path:
    with write(path, recipe, [f"{path.stem}.root"]) as writer:
        writer.append(jets_of(first, count))
    return path


def run(*sources: Path, out: Path, **more: object) -> MergeReport:
    return merge(MergeConfig.model_validate({"sources": sources, "out": out, **more}))


def numbers(path: Path) -> list[int]:
    """Which jet lies where, after a check that the parts of each jet are still together."""
    with JaggedFile(path) as file:
        jets = file.read()
    order = jets.jets[:, 0].astype(int)
    expected = jets_of(0, max(order.tolist(), default=-1) + 1).take(order)
    for name in ("features", "ids", "sizes", "jets", "labels"):
        np.testing.assert_array_equal(getattr(jets, name), getattr(expected, name))
    found: list[int] = order.tolist()
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of 30, 1 and 19 jets."""
    folder = tmp_path / "in"
    return [
        save(folder / "train" / "b.h5", 0, 30),
        save(folder / "a.h5", 30, 1),
        save(folder / "c.h5", 31, 19),
    ]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory were short: six buckets, seven jets at a time."""
    monkeypatch.setattr(module, "_split", lambda *_: (6, 7))


@pytest.mark.usefixtures("in_parts")
def test_no_jet_is_lost_or_doubled(files: list[Path], tmp_path: Path) -> None:
    report = run(*files, out=tmp_path / "all.h5")
    assert (report.num_files, report.num_jets) == (3, 50)
    assert Counter(numbers(report.out)) == Counter(range(50))
    with JaggedFile(report.out) as file:
        assert file.recipe == RECIPE
        assert sorted(file.sources) == ["a.root", "b.root", "c.root"]


def test_the_jets_of_all_files_are_mixed(files: list[Path], tmp_path: Path) -> None:
    order = numbers(run(*files, out=tmp_path / "all.h5").out)
    halves = [sum(number < 30 for number in half) for half in (order[:25], order[25:])]
    assert min(halves) >= 8  # 15 expected in each
    assert order != sorted(order)


def test_the_order_of_the_sources_is_without_effect(files: list[Path], tmp_path: Path) -> None:
    ways = [files, files[::-1], [tmp_path / "in"], [files[2], tmp_path / "in", files[0]]]
    outs = [run(*way, out=tmp_path / f"{i}.h5").out for i, way in enumerate(ways)]
    assert len({out.read_bytes() for out in outs}) == 1


def test_the_seed_gives_the_order(files: list[Path], tmp_path: Path) -> None:
    orders = [
        numbers(run(*files, out=tmp_path / f"{i}.h5", seed=seed).out)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    "more", [{}, {"num_jets": 30}, {"balance": True}, {"num_jets": 20, "balance": True}]
)
def test_memory_is_without_effect(
    files: list[Path], tmp_path: Path, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the number of buckets nor that of the jets read at once, as memory gives them."""
    monkeypatch.setattr(module, "JETS_AT_ONCE", 9)
    found = []
    for split in ((1, 9), (6, 7), (60, 2), (6, 20), (6, 1000)):
        monkeypatch.setattr(module, "_split", lambda *_, split=split: split)
        report = run(*files, out=tmp_path / "out.h5", overwrite=True, **more)
        assert report.buckets == split[0]
        found.append(numbers(report.out))
    assert all(order == found[0] for order in found)
    assert found[0] != sorted(found[0])


def test_the_same_file_in_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limits that a user gives, and with what the process has used before."""
    monkeypatch.setattr(module, "LEAST_BUDGET", 2**16)
    source = save(tmp_path / "a.h5", 0, 30_000)
    reports = []
    for memory, used in ((2**30, 2**20), (2**30, 2**30 - 2**21), (2**20, 2**19)):
        monkeypatch.setattr(module, "peak_memory", lambda used=used: used)
        out = tmp_path / f"{len(reports)}.h5"
        reports.append(run(source, out=out, memory=memory, num_jets=25_000))
    assert [report.buckets for report in reports] == [1, 4, 15]
    assert len({report.out.read_bytes() for report in reports}) == 1


def test_memory_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times as many jets as there is memory for."""
    source = save(tmp_path / "a.h5", 0, 300_000)
    with JaggedFile(source) as file:
        limit = file.num_bytes // 3
    monkeypatch.setattr(module, "LEAST_BUDGET", limit)
    monkeypatch.setattr(module, "peak_memory", lambda: 0)
    tracemalloc.start()
    try:
        run(source, out=tmp_path / "out.h5", memory=limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def test_labels_are_read_in_pieces(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of those of a whole file would be missing later."""
    monkeypatch.setattr(module, "JETS_AT_ONCE", 9)
    sizes = []
    read = JaggedFile.labels

    def spy(*args: Any) -> NDArray[np.int16]:
        sizes.append(len(read(*args)))
        return read(*args)

    monkeypatch.setattr(JaggedFile, "labels", spy)
    run(*files, out=tmp_path / "out.h5", balance=True)
    assert max(sizes) == 9
    assert sum(sizes) == 2 * 50


def test_of_equal_places_the_first_comes_first(tmp_path: Path) -> None:
    places = np.tile([0.5, 0.0, np.nextafter(1, 0), 0.5], 5)
    wanted = np.argsort(places, kind="stable").tolist()
    for count, at_once in itertools.product((1, 2, 3, 7, 1000), (1, 10, 100)):
        with Buckets(tmp_path / "buckets", count, at_once) as buckets:
            for start in range(0, 20, 6):
                part = slice(start, start + 6)
                buckets.scatter(jets_of(0, 20).take(np.arange(20)[part]), places[part])
            found = [buckets.gather(index) for index in range(count)]
        order = [jets.jets[order, 0].astype(int) for jets, order in filter(None, found)]
        assert np.concatenate(order).tolist() == wanted


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [1, 7])
def test_every_place_is_equally_likely(
    tmp_path: Path, buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_split", lambda *_: (buckets, 90))
    (tmp_path / "in").mkdir()
    sources = [save(tmp_path / "in" / f"{i}.h5", 30 * i, 30) for i in range(20)]
    counts = np.zeros((20, 6))  # file -> sixth of the output
    seeds = 10
    place = np.arange(600) // 100
    for seed in range(seeds):
        run(*sources, out=tmp_path / "out.h5", seed=seed, overwrite=True)
        np.add.at(counts, (np.array(numbers(tmp_path / "out.h5")) // 30, place), 1)
    expected = seeds * 600 / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (20 - 1) * (6 - 1)  # the sums of rows and columns are given
    assert chi2.sf(statistic, freedom) > 1e-4
    assert chi2.cdf(statistic, freedom) > 1e-4  # nor suspiciously even


def test_files_of_different_recipes_are_refused(files: list[Path], tmp_path: Path) -> None:
    other = save(tmp_path / "z.h5", 0, 2, RECIPE.model_copy(update={"max_constituents": 64}))
    with pytest.raises(DataError, match=r"z\.h5: was made with the recipe 'jetclass', .*b\.h5"):
        run(files[0], other, out=tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


def test_a_recipe_without_what_goes_without_saying_is_the_same(
    files: list[Path], tmp_path: Path
) -> None:
    """As in files of a version whose recipes had fewer settings."""
    for path in (files[0], files[2]):
        with h5py.File(path, "r+") as opened:
            text = opened.attrs["recipe"].decode()
            opened.attrs["recipe"] = text.replace("select: {}\n", "").replace("clip: null", "")
    report = run(*files, out=tmp_path / "all.h5")
    assert Counter(numbers(report.out)) == Counter(range(50))
    with JaggedFile(report.out) as file:
        assert file.recipe == RECIPE


def test_files_whose_columns_have_another_order_are_refused(
    files: list[Path], tmp_path: Path
) -> None:
    turned = RECIPE.model_dump()
    turned["jets"] = dict(reversed(turned["jets"].items()))
    other = save(tmp_path / "z.h5", 0, 2, Recipe.model_validate(turned))
    with pytest.raises(DataError, match=r"z\.h5: was made with the recipe .* another version"):
        run(files[0], other, out=tmp_path / "all.h5")


def test_an_output_among_the_sources_is_refused(files: list[Path], tmp_path: Path) -> None:
    before = files[1].read_bytes()
    for out in (files[1], files[1].parent / ".." / "in" / "a.h5"):
        with pytest.raises(DataError, match=r"a\.h5: is one of the sources"):
            run(tmp_path / "in", out=out, overwrite=True)
    assert files[1].read_bytes() == before


def test_an_output_that_is_there_is_replaced_only_on_request(
    files: list[Path], tmp_path: Path
) -> None:
    out = save(tmp_path / "all.h5", 0, 3)
    with pytest.raises(DataError, match=rf"--out {tmp_path}: is a folder; a file is needed"):
        run(*files, out=tmp_path, overwrite=True)
    with pytest.raises(DataError, match=r"all\.h5: is there already"):
        run(*files, out=out)
    assert len(numbers(out)) == 3
    run(*files, out=out, overwrite=True)
    assert len(numbers(out)) == 50


def test_sources_that_cannot_be_merged(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all.h5"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: the folder holds no \*\.h5 file"):
        run(tmp_path / "empty", out=out)
    with pytest.raises(DataError, match="absent: no such file or folder"):
        run(tmp_path / "absent", out=out)
    files[2].write_bytes(files[2].read_bytes()[:2000])
    with pytest.raises(DataError, match=r"c\.h5: not a readable HDF5 file"):
        run(*files, out=out)
    with pytest.raises(DataError, match="no source was given"):
        run(out=out)
    assert not out.exists()


def test_files_without_jets_do_no_harm(files: list[Path], tmp_path: Path) -> None:
    empty = save(tmp_path / "in" / "none.h5", 0, 0)
    report = run(*files, empty, out=tmp_path / "all.h5")
    assert Counter(numbers(report.out)) == Counter(range(50))


@pytest.mark.slow
@pytest.mark.usefixtures("in_parts")
def test_a_subset_has_the_right_size_and_any_jet_may_be_in_it(
    files: list[Path], tmp_path: Path
) -> None:
    seen: Counter[int] = Counter()
    for seed in range(40):
        out = run(*files, out=tmp_path / "out.h5", seed=seed, num_jets=10, overwrite=True).out
        chosen = numbers(out)
        assert len(set(chosen)) == len(chosen) == 10
        seen.update(chosen)
    counts = np.array([seen[number] for number in range(50)])
    statistic = ((counts - 8) ** 2 / 8).sum()  # 8 expected of each
    assert 1e-4 < chi2.sf(statistic, 49) < 1 - 1e-4


@pytest.mark.parametrize(("asked", "share"), [(None, 2), (16, 1), (15, 1)])
@pytest.mark.usefixtures("in_parts")
def test_balanced_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: int | None, share: int
) -> None:
    """Numbers 0 to 27: three jets of the classes 0 to 7, two of 8 and 9."""
    source = save(tmp_path / "a.h5", 0, 28)
    more = {"num_jets": asked} if asked else {}
    report = run(source, out=tmp_path / "out.h5", balance=True, **more)
    assert Counter(n % 10 for n in numbers(report.out)) == dict.fromkeys(range(10), share)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    told = f"note: --num-jets {asked} --balance: {10 * share} jets are kept, {share} of each class"
    assert notes == ([told] if asked else [])


def test_a_class_without_jets_does_not_hinder_balance(tmp_path: Path) -> None:
    source = save(tmp_path / "a.h5", 0, 8)
    assert run(source, out=tmp_path / "out.h5", balance=True).num_jets == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_jets": 51}, "--num-jets 51: the sources hold 50 jets"),
        ({"num_jets": 60, "balance": True}, "6 jets of each class; the sources have .* 1 and 5"),
        ({"num_jets": 9, "balance": True}, "0 jets of each class"),
        ({"memory": "1MiB"}, r"--memory 1.0MiB: at least \d+MiB are needed"),
    ],
)
def test_what_cannot_be_done_is_said(
    files: list[Path], tmp_path: Path, more: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(*files, out=tmp_path / "new" / "out.h5", **more)
    assert not (tmp_path / "new").exists()


def test_the_checksum_sees_every_bit_and_no_order() -> None:
    jets = jets_of(0, 40)
    whole = checksum(jets)
    assert checksum(jets.take(np.random.default_rng(0).permutation(40))) == whole
    parts = [jets.take(np.arange(25)), jets.take(np.arange(25, 40))]
    assert sum(map(checksum, parts)) % 2**64 == whole
    rng = np.random.default_rng(1)
    for name in ("features", "ids", "jets", "labels"):
        for _ in range(10):
            changed = getattr(jets, name).copy()
            flat = changed.reshape(-1).view(np.uint8)
            flat[rng.integers(len(flat))] ^= 1 << rng.integers(8)
            assert checksum(replace(jets, **{name: changed})) != whole
    sizes = jets.sizes.copy()
    sizes[[1, 2]] = sizes[[2, 1]]  # the same rows, cut in another place
    assert checksum(replace(jets, sizes=sizes)) != whole
    swapped = jets.features.copy()
    rows = np.arange(len(swapped))
    pair = int(np.flatnonzero(jets.sizes == 3)[0])
    first = int(jets.offsets[pair])
    swapped[first] += 1
    other = replace(jets, features=swapped)
    rows[[first, first + 1]] = rows[[first + 1, first]]
    assert checksum(replace(other, features=swapped[rows])) != checksum(other)


@pytest.mark.usefixtures("in_parts")
def test_what_comes_out_wrong_is_not_kept(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(jets: JetArrays, order: np.ndarray) -> JetArrays:
        taken = take(jets, order)
        taken.jets[:] += 1
        return taken

    take = JetArrays.take
    gather = module._gather
    with monkeypatch.context() as patch:

        def spoil(*args: object) -> None:
            patch.setattr(JetArrays, "take", spoiled)
            gather(*args)

        patch.setattr(module, "_gather", spoil)
        with pytest.raises(DataError, match="is the disk sound"):
            run(*files, out=tmp_path / "out.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_what_is_in_the_way_is_said(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"out\.h5: cannot be written"):
        run(*files, out=tmp_path / "file" / "out.h5")
    with pytest.raises(DataError, match="the sources hold no jets"):
        run(save(tmp_path / "none.h5", 0, 0), out=tmp_path / "out.h5", balance=True)


def test_memory_is_counted_that_the_process_had_itself() -> None:
    """Not what its parent had, which the system hands down."""
    program = "from jetssl_cli.data.workers import peak_memory; print(peak_memory())"
    touched = np.ones(2**26)
    assert peak_memory() > touched.nbytes
    words = [sys.executable, "-c", program]
    found = int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    assert 0 < found < touched.nbytes
