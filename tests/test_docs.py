"""What the documentation says is done as it stands."""

from __future__ import annotations

import re
from pathlib import Path

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
