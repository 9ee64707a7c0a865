from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.inspect import InspectConfig, inspect
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.report import render
from jetssl_cli.errors import DataError

Runner = Callable[..., subprocess.CompletedProcess[str]]


def test_the_numbers_are_those_of_a_plain_computation(jagged: Path) -> None:
    path = jagged / "train.h5"
    report = inspect(InspectConfig(file=path))
    with JaggedFile(path) as file:
        jets, classes = file.read(), file.schema.classes
    assert report.num_jets == len(jets)
    assert report.num_constituents == len(jets.ids)
    counts = {name: int((jets.labels == index).sum()) for index, name in enumerate(classes)}
    assert report.classes == counts
    charged = ~np.isin(jets.ids, (0, 2))
    for index, column in enumerate(report.constituents):
        values = jets.features[:, index]
        there = values[charged] if index >= 3 else values
        assert column.missing == (len(values) - len(there))
        assert column.min == pytest.approx(there.min())
        assert column.max == pytest.approx(there.max())
        assert column.median == pytest.approx(np.median(there), rel=1e-5)
        assert column.non_finite == 0
    for index, column in enumerate(report.jets):
        assert column.p99 == pytest.approx(np.percentile(jets.jets[:, index], 99), rel=1e-5)


def test_numbers_that_are_not_finite_are_reported(jagged: Path, tmp_path: Path) -> None:
    path = tmp_path / "spoiled.h5"
    path.write_bytes((jagged / "val.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["constituents/features"][:3, 0] = [np.nan, np.inf, 1]
    pt = inspect(InspectConfig(file=path)).constituents[0]
    assert pt.non_finite == 2
    assert np.isfinite([pt.min, pt.max]).all()


@pytest.mark.parametrize("width", [60, 80])
def test_no_number_is_broken_over_lines(jagged: Path, width: int) -> None:
    """They are those of a wide terminal, and so are the names with their units."""

    def printed(width: int) -> str:
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(render(inspect(InspectConfig(file=jagged / "val.h5")), format="rich"))
        tables: str = console.file.getvalue().split("Storage")[1]
        return tables

    narrow = printed(width)
    assert all(len(line) <= width for line in narrow.splitlines())
    cells = {cell for line in printed(200).splitlines() for cell in re.split(r" {2,}", line)}
    words = [cell.strip() for cell in cells if not cell.startswith(("─", "of all jets"))]
    assert len(words) > 100
    assert all(word in narrow for word in words)


@pytest.mark.slow
def test_the_command_prints_and_plots(jetssl: Runner, jagged: Path, tmp_path: Path) -> None:
    done = jetssl("inspect", jagged / "val.h5", "--plots", "plots")
    assert done.returncode == 0, done.stderr
    for words in ("dphi [rad]", "neutral hadron", "Hbb", "bytes/jet"):
        assert words in done.stdout
    names = {"classes", "constituents", "constituents_scaled", "jets", "jets_scaled"}
    made = {path.name for path in (tmp_path / "plots").iterdir()}
    assert made == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")}
    for path in (tmp_path / "plots").glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG"
    done = jetssl("inspect", jagged / "val.h5", "--format", "json")
    assert json.loads(done.stdout)["num_jets"] == 200
    for words in ([tmp_path / "absent.h5"], [jagged / "val.h5", "--format", "xml"]):
        done = jetssl("inspect", *words)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")


@pytest.mark.slow
def test_files_of_all_kinds(shared_data: Path, tmp_path: Path) -> None:
    recipe = load_recipe("btag_reduced")
    source = shared_data / "btag_reduced_test.root"
    made = convert(ConvertConfig(sources=(source,), recipe=recipe, out=tmp_path, half=True))
    report = inspect(InspectConfig(file=made.files[0].output, plots=tmp_path / "plots"))
    assert report.precision == "float16"
    assert len(report.constituents) == 5
    assert (tmp_path / "plots" / "constituents.png").exists()
    (tmp_path / "bad.h5").write_bytes(b"no file of ours")
    with pytest.raises(DataError, match=r"bad\.h5: not a readable HDF5 file"):
        inspect(InspectConfig(file=tmp_path / "bad.h5"))
