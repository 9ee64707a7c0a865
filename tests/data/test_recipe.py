from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from jetssl_cli.config import Layer, load, shipped, to_yaml
from jetssl_cli.data.recipe import Recipe, load_recipe, parse_recipe, schema_of
from jetssl_cli.errors import ConfigError
from jetssl_cli.physics import NEUTRAL_CLASSES, PARTICLE_CLASSES
from jetssl_cli.safeyaml import parse_yaml

JETCLASS: dict[str, Any] = parse_yaml((shipped("data_recipes") / "jetclass.yaml").read_text(), "x")
CLASSES = ("QCD", "Tbl", "Tbqq", "Wqq", "Zqq", "Hbb", "Hcc", "Hgg", "H4q", "Hqql")


def changed(where: str, value: object) -> dict[str, Any]:
    """The recipe of JetClass with one setting replaced; None takes it away."""
    raw = copy.deepcopy(JETCLASS)
    *parents, last = where.split(".")
    section = raw
    for part in parents:
        section = section[part]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return raw


def integers(values: object) -> dict[str, Any]:
    return changed("labels", {"kind": "integer", "branch": "flavour", "values": values})


PT = "constituents.features.pt"


@pytest.mark.parametrize(
    ("raw", "messages"),
    [
        (
            changed(f"{PT}.formula", "transverse_momentun"),
            [PT, "no formula 'transverse_momentun'; did you mean 'transverse_momentum'?"],
        ),
        (
            changed("jets.jet_pt", {"unit": "GeV", "formula": "eval", "inputs": {}}),
            ["jets.jet_pt", "no formula 'eval'; valid: transverse_momentum, "],
        ),
        (
            changed(f"{PT}.inputs", {"px": "part_px"}),
            [PT, "transverse_momentum needs the inputs px, py; got px"],
        ),
        (
            changed(f"{PT}.inputs", {"px": "a", "py": "b", "pz": "c"}),
            [PT, "transverse_momentum needs the inputs px, py; got px, py, pz"],
        ),
        (changed(f"{PT}.inputs", None), [PT, "needs the inputs px, py"]),
        (
            changed(f"{PT}.branch", "part_pt"),
            [PT, "exactly one of 'branch', 'formula'"],
        ),
        (
            changed(f"{PT}", {"unit": "GeV"}),
            [PT, "exactly one of 'branch', 'formula'"],
        ),
        (
            changed(PT, {"unit": "GeV", "branch": "pt", "inputs": {"px": "x"}}),
            [PT, "'inputs' belong to a 'formula'"],
        ),
        (changed(f"{PT}.unit", None), [f"{PT}.unit: this setting is required"]),
        (changed(f"{PT}.clp", 0.8), [f"{PT}.clp = 0.8: no such setting; did you mean 'clip'?"]),
        (changed("constituents.features.deta.clip", 0), ["features.deta.clip = 0", "than 0"]),
        (
            changed("constituents.order_by", "ptt"),
            ["constituents", "no feature 'ptt'; did you mean 'pt'?"],
        ),
        (changed("constituents.features", {}), ["constituents.features", "at least 1"]),
        (changed("constituents.ids.inputs.muon", None), ["constituents.ids", "needs the inputs"]),
        (
            changed("constituents.ids.formula", "delta_phi"),
            ["constituents.ids.formula = 'delta_phi'", "valid: particle_class"],
        ),
        (changed("max_constituents", 0), ["max_constituents = 0", "greater than 0"]),
        (changed("tree", None), ["tree: this setting is required"]),
        (changed("labels.kind", "onehot"), ["labels.kind = 'onehot'", "did you mean 'one_hot'?"]),
        (changed("labels.branches", {"QCD": "q"}), ["labels.branches", "at least 2"]),
        (changed("jets", {}), ["jets", "at least 1"]),
        (integers(["b", "c", "b"]), ["labels", "a name and a value of its own"]),
        (integers({"b": 5, "c": 4, "light": 4}), ["labels", "a name and a value of its own"]),
        (integers(["b"]), ["labels.values", "at least 2"]),
        (integers({"b": "five", "c": 4}), ["labels.values.b = 'five'"]),
    ],
)
def test_a_wrong_recipe_is_refused(raw: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Recipe, [Layer("my.yaml", raw)])
    assert str(caught.value).startswith("my.yaml: ")
    for message in messages:
        assert message in str(caught.value)


def test_integer_labels_count_from_zero_or_have_values_of_their_own() -> None:
    counted = load(Recipe, [Layer("x", integers(["light", "charm", "bottom"]))]).labels
    assert counted.classes == ("light", "charm", "bottom")
    assert counted.value_of == {"light": 0, "charm": 1, "bottom": 2}
    valued = load(Recipe, [Layer("x", integers({"light": 0, "charm": 4, "bottom": 5}))]).labels
    assert valued.classes == ("light", "charm", "bottom")
    assert valued.value_of == {"light": 0, "charm": 4, "bottom": 5}


def test_the_schema_of_jetclass_says_what_the_definitions_say() -> None:
    recipe = load_recipe("jetclass")
    schema = schema_of(recipe)
    assert schema.classes == recipe.labels.classes == CLASSES
    names = [(f.name, f.unit, f.charged_only) for f in schema.constituents]
    assert names == [
        ("pt", "GeV", False),
        ("deta", "1", False),
        ("dphi", "rad", False),
        ("d0", "mm", True),
        ("d0_err", "mm", True),
        ("dz", "mm", True),
        ("dz_err", "mm", True),
    ]
    assert [f.name for f in schema.jets] == [
        "jet_pt",
        "jet_eta",
        "jet_phi",
        "jet_sdmass",
        "num_constituents",
    ]
    assert (schema.ids, schema.neutral_ids) == (PARTICLE_CLASSES, NEUTRAL_CLASSES)
    assert recipe.max_constituents == 128


def test_jetclass2_has_the_columns_of_jetclass_and_188_classes() -> None:
    first, second = (schema_of(load_recipe(name)) for name in ("jetclass", "jetclass2"))
    assert second.model_copy(update={"classes": first.classes}) == first
    assert len(second.classes) == 188


def test_the_branches_to_read_are_those_that_the_columns_name() -> None:
    recipe = load_recipe("jetclass")
    text = (shipped("data_recipes") / "jetclass.yaml").read_text()
    words = set(text.replace(",", " ").replace("}", " ").replace(":", " ").split())
    prefixes = ("part_", "jet_", "label_")
    named = {w for w in words if w.startswith(prefixes)} - {"jet_branches"}
    assert set(recipe.branches) == named
    assert recipe.branches == sorted(recipe.branches)
    assert recipe.jet_branches == {b for b in recipe.branches if not b.startswith("part_")}


def test_a_recipe_is_named_or_lies_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(load_recipe("jetclass")))
    assert load_recipe(str(path)) == load_recipe("jetclass")
    with pytest.raises(ConfigError, match=r"no recipe 'jetklass'; did you mean 'jetclass'\?"):
        load_recipe("jetklass")
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_recipe(str(tmp_path / "absent.yaml"))


def test_the_text_in_a_file_is_read_back() -> None:
    recipe = load_recipe("jetclass2")
    assert parse_recipe(to_yaml(recipe), "x.h5") == recipe
    for text in ("", "- 1", "hello"):
        with pytest.raises(ConfigError, match=r"^x\.h5: holds no recipe"):
            parse_recipe(text, "x.h5")
