"""The typed model of ``data_recipes/*.yaml``: which branches of a tree become which columns."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jetssl_cli.config import Layer, Strict, load, parse_yaml, shipped_file
from jetssl_cli.errors import ConfigError, suggest
from jetssl_cli.physics import FORMULAS, NEUTRAL_CLASSES, PARTICLE_CLASSES


class Column(Strict):
    """One column: either a branch as it is, or a named function of several branches."""

    unit: str
    """Unit of the stored values; "1" for pure numbers."""
    branch: str | None = None
    """Branch that is copied."""
    formula: str | None = None
    """Function of ``physics.py`` that computes the column."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Parameter of the function -> branch. Branches of the jet are repeated per constituent."""
    clip: PositiveFloat | None = None
    """Values are clipped to +- this."""
    charged_only: bool = False
    """Only charged particles have it: 0 in the file for neutral ones, missing when scaling."""

    @model_validator(mode="after")
    def _one_source(self) -> Column:
        if (self.branch is None) == (self.formula is None):
            raise ValueError("give exactly one of 'branch' and 'formula'")
        if self.formula is None and self.inputs:
            raise ValueError("'inputs' belong to a 'formula'")
        if self.formula is not None:
            _check_formula(self.formula, self.inputs)
        return self

    @property
    def branches(self) -> set[str]:
        """All branches that the column needs."""
        return {self.branch} if self.branch else set(self.inputs.values())


class Ids(Strict):
    """The particle class of each constituent."""

    formula: Literal["particle_class"] = "particle_class"
    """Function of ``physics.py``."""
    inputs: dict[str, str]
    """Parameter of the function -> branch."""

    @model_validator(mode="after")
    def _known(self) -> Ids:
        _check_formula(self.formula, self.inputs)
        return self


class Constituents(Strict):
    """What is stored of each constituent."""

    order_by: str
    """Column in whose descending order the constituents of a jet are stored."""
    features: Annotated[dict[str, Column], Field(min_length=1)]
    """Name of the column -> where it comes from."""
    ids: Ids
    """Where the particle class comes from."""

    @model_validator(mode="after")
    def _order(self) -> Constituents:
        if self.order_by not in self.features:
            raise ValueError(
                f"no feature {self.order_by!r}; {suggest(self.order_by, self.features)}"
            )
        return self


class OneHotLabels(Strict):
    """One branch per class, of which exactly one is 1 in each jet."""

    kind: Literal["one_hot"] = "one_hot"
    """Tells the kinds of labels apart."""
    branches: Annotated[dict[str, str], Field(min_length=2)]
    """Class -> branch, in the order of the class indices."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.branches)


class IntegerLabels(Strict):
    """One branch of integers."""

    kind: Literal["integer"] = "integer"
    """Tells the kinds of labels apart."""
    branch: str
    """Branch that holds the label."""
    values: Annotated[list[str] | dict[str, int], Field(min_length=2)]
    """Classes whose values are 0, 1, 2, ...; or class -> value."""

    @model_validator(mode="after")
    def _distinct(self) -> IntegerLabels:
        values = self.value_of
        if len(set(values)) < len(self.values) or len(set(values.values())) < len(self.values):
            raise ValueError("every class needs a name and a value of its own")
        return self

    @property
    def value_of(self) -> dict[str, int]:
        """Class -> value in the branch."""
        if isinstance(self.values, dict):
            return self.values
        return {name: index for index, name in enumerate(self.values)}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.value_of)


class Feature(Strict):
    """Name and unit of one stored column."""

    name: str
    unit: str
    charged_only: bool = False


class Schema(Strict):
    """What the columns of a converted file mean; what a network must be fed with."""

    constituents: tuple[Feature, ...]
    """Constituent features, in the order of the columns."""
    ids: tuple[str, ...]
    """Particle classes."""
    neutral_ids: tuple[int, ...]
    """Indices of the particle classes without a track."""
    jets: tuple[Feature, ...]
    """Jet features, in the order of the columns."""
    classes: tuple[str, ...]
    """Names of the jet classes, in the order of the labels."""


class Recipe(Strict):
    """How one kind of ROOT file becomes jets."""

    name: str
    """Short name of the data set."""
    description: str
    """What it is, and where it comes from."""
    tree: str
    """Name of the TTree."""
    max_constituents: PositiveInt
    """At most this many constituents of a jet are stored."""
    constituents: Constituents
    jets: Annotated[dict[str, Column], Field(min_length=1)]
    """Jet features."""
    labels: Annotated[OneHotLabels | IntegerLabels, Field(discriminator="kind")]

    @property
    def jet_branches(self) -> set[str]:
        """Branches with one value per jet that jet features and labels need."""
        labels = self.labels
        of_labels = (
            set(labels.branches.values()) if isinstance(labels, OneHotLabels) else {labels.branch}
        )
        return of_labels.union(*(column.branches for column in self.jets.values()))

    @property
    def branches(self) -> list[str]:
        """All branches to read, sorted."""
        columns = self.constituents.features.values()
        ids = set(self.constituents.ids.inputs.values())
        return sorted(self.jet_branches.union(ids, *(column.branches for column in columns)))


def load_recipe(name: str) -> Recipe:
    """Load a shipped recipe by its name, or any recipe by its path (``*.yaml``).

    Raises:
        ConfigError: no such recipe, or it does not describe one.
    """
    is_file = name.endswith((".yaml", ".yml")) or Path(name).is_file()
    path = Path(name) if is_file else shipped_file("data_recipes", name, "recipe")
    return load(Recipe, [Layer.read(path)])


def parse_recipe(text: str, source: str) -> Recipe:
    """Read back the YAML text of a recipe that a data file carries."""
    raw = parse_yaml(text, source)
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: holds no recipe")
    return load(Recipe, [Layer(source, raw)])


def schema_of(recipe: Recipe) -> Schema:
    """What the columns mean that this recipe makes."""
    return Schema(
        constituents=tuple(_feature(*item) for item in recipe.constituents.features.items()),
        ids=PARTICLE_CLASSES,
        neutral_ids=NEUTRAL_CLASSES,
        jets=tuple(_feature(*item) for item in recipe.jets.items()),
        classes=recipe.labels.classes,
    )


def _feature(name: str, column: Column) -> Feature:
    return Feature(name=name, unit=column.unit, charged_only=column.charged_only)


def _check_formula(name: str, inputs: dict[str, str]) -> None:
    if name not in FORMULAS:
        raise ValueError(f"no formula {name!r}; {suggest(name, FORMULAS)}")
    wanted = list(inspect.signature(FORMULAS[name]).parameters)
    if set(inputs) != set(wanted):
        raise ValueError(f"{name} needs the inputs {', '.join(wanted)}; got {', '.join(inputs)}")
