"""What the documentation says is done as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jetssl_cli.config import Layer, load
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import Column, Recipe
from jetssl_cli.physics import FORMULAS

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def test_the_recipe_of_the_page_converts_the_file_of_the_page(
    shared_data: Path, tmp_path: Path
) -> None:
    (text,) = blocks("recipes.md", "yaml")
    recipe = load(Recipe, [Layer("mine.yaml", yaml.safe_load(text))])
    source = shared_data / "btag_reduced_valid.root"
    report = convert(ConvertConfig(sources=(source,), recipe=recipe, out=tmp_path))
    assert set(report.classes) == {"light", "charm", "bottom"}
    with JaggedFile(report.files[0].output) as file:
        assert [feature.name for feature in file.schema.constituents] == [
            "pt",
            "deta",
            "dphi",
            "d0",
        ]
        assert file.read().jets[:, 0].min() >= 20


def test_the_page_lists_every_formula_and_setting() -> None:
    page = (DOCS / "recipes.md").read_text()
    for name in (*FORMULAS, *Recipe.model_fields, *Column.model_fields):
        assert f"`{name}" in page or f".{name}`" in page or f"`{name}:" in page, name


@pytest.mark.slow
def test_a_file_of_ones_own_comes_to_a_score_table(shared_data: Path, tmp_path: Path) -> None:
    """The page, typed as it stands, in an empty folder."""
    (recipe,) = blocks("recipes.md", "yaml")
    (tmp_path / "mine.yaml").write_text(recipe)
    sources = {"train": "valid", "val": "test", "test": "test", "my": "test"}
    for name, source in sources.items():
        shutil.copy(shared_data / f"btag_reduced_{source}.root", tmp_path / f"{name}.root")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", "".join(blocks("recipes.md", "sh"))],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^tagger +1,017 ", done.stdout, re.M)
    assert "data:image/svg+xml" in (tmp_path / "report.html").read_text()
