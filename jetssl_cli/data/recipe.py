"""The typed model of ``data_recipes/*.yaml``: which branches of a tree become which columns."""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jetssl_cli.config import Layer, Strict, load, shipped_file, to_yaml
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.errors import ConfigError, suggest
from jetssl_cli.physics import FORMULAS, NEUTRAL_CLASSES, PARTICLE_CLASSES, takes_list
from jetssl_cli.safeyaml import parse_yaml


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
    absent: bool = False
    """The data set does not have it: the file gets no such column."""

    @model_validator(mode="after")
    def _one_source(self) -> Column:
        if [self.branch is None, self.formula is None, not self.absent].count(False) != 1:
            raise ValueError("give exactly one of 'branch', 'formula' and 'absent: true'")
        if self.formula is None and self.inputs:
            raise ValueError("'inputs' belong to a 'formula'")
        if self.formula is not None:
            _check_formula(self.formula, self.inputs)
        return self

    @property
    def branches(self) -> set[str]:
        """All branches that the column needs."""
        return {self.branch} if self.branch else set(self.inputs.values())

    def is_list(self, parameter: str) -> bool:
        """Whether an input is a list of the jet's own, not a number per constituent."""
        return self.formula is not None and takes_list(self.formula, parameter)


AnyColumn = TypeVar("AnyColumn", bound=Column)


class Truth(Column):
    """One integer of truth about each constituent: for later tasks, never an input."""

    unit: str = "1"
    """Truth has no unit."""
    values: dict[str, int] | None = None
    """What the integers mean, where they are classes."""


class Ids(Strict):
    """The particle class of each constituent."""

    formula: Literal["particle_class", "particle_class_of_pdg"] = "particle_class"
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
    ids: Ids | None = None
    """Where the particle class comes from; left out where the data set has none."""
    truth: dict[str, Truth] = Field(default_factory=dict)
    """Truth about each constituent: name -> where it comes from."""

    @model_validator(mode="after")
    def _order(self) -> Constituents:
        if self.order_by not in self.stored:
            raise ValueError(f"no feature {self.order_by!r}; {suggest(self.order_by, self.stored)}")
        charged = [name for name, column in self.features.items() if column.charged_only]
        if charged and self.ids is None:
            raise ValueError(f"{charged[0]!r} is 'charged_only', which needs 'ids'")
        return self

    @property
    def stored(self) -> dict[str, Column]:
        """The features that the data set has."""
        return _present(self.features)

    @property
    def stored_truth(self) -> dict[str, Truth]:
        """The truth that the data set has."""
        return _present(self.truth)


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
    drop: list[int] = Field(default_factory=list)
    """Values whose jets are left out; any other value that is no class is an error."""

    @model_validator(mode="after")
    def _distinct(self) -> IntegerLabels:
        values = self.value_of
        if len(set(values)) < len(self.values) or len(set(values.values())) < len(self.values):
            raise ValueError("every class needs a name and a value of its own")
        both = set(self.drop) & set(values.values())
        if both:
            raise ValueError(f"the value {min(both)} is both a class and in 'drop'")
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


class Limits(Strict):
    """Smallest and largest value, both allowed themselves."""

    min: float | None = None
    """Smaller values are left out."""
    max: float | None = None
    """Larger values are left out."""


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
    select: dict[str, Limits] = Field(default_factory=dict)
    """Jet feature -> limits; jets outside of them are left out."""

    @model_validator(mode="after")
    def _jet_features(self) -> Recipe:
        if not self.jet_features:
            raise ValueError("'jets' needs a feature that is not absent")
        unknown = [name for name in self.select if name not in self.jet_features]
        if unknown:
            raise ValueError(
                f"'select': no jet feature {unknown[0]!r}; {suggest(unknown[0], self.jet_features)}"
            )
        return self

    @property
    def text(self) -> str:
        """The recipe as YAML: what a data file carries.

        Recipes are the same if these texts are: unlike ``==``, they tell the order of the columns.
        """
        return _text(self.model_dump_json())

    @property
    def jet_features(self) -> dict[str, Column]:
        """The jet features that the data set has."""
        return _present(self.jets)

    @property
    def jet_branches(self) -> set[str]:
        """Branches with one value per jet that jet features and labels need."""
        labels = self.labels
        of_labels = (
            set(labels.branches.values()) if isinstance(labels, OneHotLabels) else {labels.branch}
        )
        return of_labels.union(*(column.branches for column in self.jet_features.values()))

    @property
    def branches(self) -> list[str]:
        """All branches to read, sorted."""
        of = self.constituents
        columns = [*of.stored.values(), *of.stored_truth.values()]
        ids = set(of.ids.inputs.values()) if of.ids else set()
        return sorted(self.jet_branches.union(ids, *(column.branches for column in columns)))

    @property
    def constituent_branches(self) -> list[str]:
        """Branches that, where they are lists, have one number per constituent; sorted."""
        of = self.constituents
        names = set(of.ids.inputs.values()) if of.ids else set()
        for column in (*of.stored.values(), *of.stored_truth.values()):
            names |= {branch for name, branch in column.inputs.items() if not column.is_list(name)}
            names |= {column.branch} if column.branch else set()
        return sorted(names)


@lru_cache
def _text(as_json: str) -> str:
    return to_yaml(Recipe.model_validate_json(as_json))


def load_recipe(name: str) -> Recipe:
    """Load a shipped recipe by its name, or any recipe by its path (``*.yaml``).

    Raises:
        ConfigError: no such recipe, or it does not describe one.
    """
    is_file = name.endswith((".yaml", ".yml")) or Path(name).is_file()
    path = Path(name) if is_file else shipped_file("data_recipes", name, "recipe")
    return load(Recipe, [Layer.read(path)])


def parse_recipe(text: str, source: str) -> Recipe:
    """Read back the YAML text of a recipe that a data file carries.

    A text is parsed once: YAML takes its time, and of a data set all files have the same.

    Raises:
        ConfigError: it is none; names the source.
    """
    with suppress(ConfigError):
        return _parsed(text)
    return _parse(text, source)


@lru_cache
def _parsed(text: str) -> Recipe:
    return _parse(text, "")


def _parse(text: str, source: str) -> Recipe:
    raw = parse_yaml(text, source)
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: holds no recipe")
    return load(Recipe, [Layer(source, raw)])


def schema_of(recipe: Recipe) -> Schema:
    """What the columns mean that this recipe makes."""
    of = recipe.constituents
    return Schema(
        constituents=tuple(_feature(*item) for item in of.stored.items()),
        ids=PARTICLE_CLASSES if of.ids else (),
        neutral_ids=NEUTRAL_CLASSES if of.ids else (),
        truth=tuple(of.stored_truth),
        jets=tuple(_feature(*item) for item in recipe.jet_features.items()),
        classes=recipe.labels.classes,
    )


def _present(columns: dict[str, AnyColumn]) -> dict[str, AnyColumn]:
    return {name: column for name, column in columns.items() if not column.absent}


def _feature(name: str, column: Column) -> Feature:
    return Feature(name=name, unit=column.unit, charged_only=column.charged_only)


def _check_formula(name: str, inputs: dict[str, str]) -> None:
    if name not in FORMULAS:
        raise ValueError(f"no formula {name!r}; {suggest(name, FORMULAS)}")
    wanted = list(inspect.signature(FORMULAS[name]).parameters)
    if set(inputs) != set(wanted):
        raise ValueError(f"{name} needs the inputs {', '.join(wanted)}; got {', '.join(inputs)}")
