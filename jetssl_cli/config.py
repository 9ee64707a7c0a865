"""From YAML layers and dotted overrides to one typed, frozen config; knows no section by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, to_jsonable_python

from jetssl_cli.errors import MOST, ConfigError, printable, suggest
from jetssl_cli.safeyaml import Dumper, parse_yaml, read_yaml

DEEPEST = 20
"""Sections within each other that an override may name."""
NOT_A_NUMBER = PydanticCustomError("not_a_number", "a number is needed, not a truth value")


class Strict(BaseModel):
    """Base of all configs: immutable, every key known, every number finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        wrong = [
            InitErrorDetails(type=NOT_A_NUMBER, loc=(name,), input=settings[name])
            for name, field in cls.model_fields.items()
            if isinstance(settings.get(name), bool) and _is_number(field.annotation)
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return settings


C = TypeVar("C", bound=Strict)


def last_said(layers: Sequence[Layer], *path: str) -> Any:
    """What the last layer that has something for the setting at this path has; None if none."""
    found = (layer.get(*path) for layer in reversed(layers))
    return next((value for value in found if value is not None), None)


@dataclass(frozen=True)
class Layer:
    """One source of settings; a later layer wins over an earlier one, key by key."""

    source: str
    """What an error message calls it: a file, or the words of the command line."""
    settings: Mapping[str, Any]
    options: Mapping[str, str] = field(default_factory=dict)
    """``section.key`` -> the option that says it, where its name tells too little."""

    def get(self, *path: str) -> Any:
        """What it has for the setting at this path; None if nothing."""
        value: Any = self.settings
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @classmethod
    def read(cls, path: Path) -> Layer:
        """Read a YAML file that holds a mapping."""
        return cls(str(path), read_yaml(path))


def shipped(folder: str) -> Path:
    """Find a folder such as ``configs``, in an installed wheel or beside a checkout."""
    package = Path(__file__).parent
    inside = package / "_shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def shipped_file(folder: str, name: str, what: str) -> Path:
    """Find the shipped preset ``folder/name.yaml``.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    valid = shipped_names(folder)
    if name not in valid:
        raise ConfigError(f"no {what} {name!r}; {suggest(name, valid)}")
    return shipped(folder) / f"{name}.yaml"


def shipped_names(folder: str) -> list[str]:
    """The presets in a folder, by name."""
    return sorted(file.stem for file in shipped(folder).glob("*.yaml"))


def parts(value: object) -> object:
    """Names with commas between them, as a list; for validators."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def override_layer(item: str) -> Layer:
    """Turn one ``section.key=value`` of the command line into a layer; the value is YAML."""
    key, sep, value = item.partition("=")
    parts = key.split(".")
    source = printable(_shortened(item))
    if not sep or len(parts) > DEEPEST or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{source}: an override has the form section.key=value")
    settings: Any = parse_yaml(value, source)
    for part in reversed(parts):
        settings = {part: settings}
    return Layer(f"override {item}", settings)


def load(cls: type[C], layers: Sequence[Layer], overrides: Sequence[str] = ()) -> C:
    """Lay the layers over each other, then the overrides, and validate the result.

    Raises:
        ConfigError: one line per mistake: the source, the key, the value, the rule.
    """
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    for layer in (*layers, *map(override_layer, overrides)):
        _lay(merged, layer.settings, layer.source, origin, ())
    try:
        return cls.model_validate(merged)
    except ValidationError as err:
        raise ConfigError("\n".join(_explain(err, cls, merged, origin))) from None


def to_yaml(cfg: Strict) -> str:
    """Write a config as YAML that ``load`` reads back to an equal config."""
    settings = cfg.model_dump(mode="json")
    return yaml.dump(settings, Dumper=Dumper, sort_keys=False)  # ASCII: YAML folds U+0085


def to_json(report: object) -> str:
    """Write a report as JSON; a number that is not finite is null."""
    plain = to_jsonable_python(report, inf_nan_mode="null", fallback=str)
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)


def _lay(
    below: dict[str, Any],
    above: Mapping[str, Any],
    source: str,
    origin: dict[tuple[str, ...], str],
    path: tuple[str, ...],
) -> None:
    for key, value in above.items():
        here = (*path, str(key))
        origin[here] = source
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _lay(below[key], value, source, origin, here)
        elif isinstance(value, Mapping):
            below[key] = {}
            _lay(below[key], value, source, origin, here)
        else:
            below[key] = value


def _explain(
    err: ValidationError,
    cls: type[Strict],
    merged: Mapping[str, Any],
    origin: Mapping[tuple[str, ...], str],
) -> list[str]:
    lines = []
    sources = set(origin.values())
    only = sources.pop() if len(sources) == 1 else ""
    for error in err.errors():
        path, choices = _locate(error["loc"], cls, merged)
        value, rule = _short(error["input"]), error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            elsewhere = {".".join(p) for p in _settings([cls], merged) if p[-1] == path[-1]}
            told = f"did you mean {' or '.join(sorted(elsewhere))}?" if elsewhere else ""
            rule = f"no such setting; {told or suggest(path[-1], choices)}"
        elif error["type"] == "union_tag_invalid":
            tag, valid = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "")
            path, value = (*path, error["ctx"]["discriminator"].strip("'")), repr(tag)
            rule = f"no such choice; {suggest(tag, valid.split(', '))}"
        elif error["type"] == "union_tag_not_found":
            path = (*path, error["ctx"]["discriminator"].strip("'"))
        elif error["type"] == "literal_error" and isinstance(error["input"], str):
            valid = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            rule = f"no such choice; {suggest(error['input'], valid)}"
        parents = [path[:n] for n in range(len(path), 0, -1)]
        known = next((origin[parent] for parent in parents if parent in origin), only)
        source = f"{known}: " if known and not known.startswith("override") else ""
        key = printable(_shortened(".".join(path)))
        if not path:  # a rule of the whole
            lines.append(f"{source}{rule}")
        elif error["type"] in ("missing", "union_tag_not_found"):
            lines.append(f"{source}{key}: this setting is required")
        else:
            lines.append(f"{source}{key} = {value}: {rule}")
    return lines


def _short(value: object) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST - 3]}..."


def _locate(
    loc: tuple[int | str, ...], cls: type[Strict], settings: Any
) -> tuple[tuple[str, ...], list[str]]:
    """The dotted key of a pydantic location, without the tags of unions, and its siblings.

    A part of the location that is no key of the settings is a tag, except for the last part,
    which may be a key that is missing.
    """
    path: list[str] = []
    models: list[type[BaseModel]] = [cls]
    siblings: list[str] = []
    for part in loc:
        is_key = isinstance(settings, Mapping) and part in settings
        fields = [m.model_fields[str(part)] for m in models if str(part) in m.model_fields]
        in_list = isinstance(settings, list) and isinstance(part, int)
        if is_key or in_list:  # of a list, a value may be missing
            settings = None if in_list and int(part) >= len(settings) else settings[part]
        elif not fields:
            models = [m for m in models if _tag(m) == part] or models
            continue
        path.append(str(part))
        siblings = sorted({name for m in models for name in m.model_fields})
        models = [m for field in fields for m in _models(field.annotation)] if fields else models
    return tuple(path), siblings


def _settings(
    models: Sequence[type[BaseModel]], given: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The paths of all settings, but those of sections left out and of choices not made."""
    chosen = [m for m in models if _tag(m) in (given.get("name"), given.get("kind"))]
    for model in chosen or models:
        for name, found in model.model_fields.items():
            here = (*above, name)
            yield here
            section, optional = given.get(name), type(None) in get_args(found.annotation)
            if not optional or section is not None:
                below = section if isinstance(section, Mapping) else {}
                yield from _settings(_sections(found.annotation), below, here)


def _tag(model: type[BaseModel]) -> object:
    for key in ("name", "kind"):
        if key in model.model_fields:
            return model.model_fields[key].default
    return None


def _is_number(annotation: Any) -> bool:
    if isinstance(annotation, type):
        return issubclass(annotation, int | float) and annotation is not bool
    return bool not in get_args(annotation) and any(map(_is_number, get_args(annotation)))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The models of a field that holds one of them, not many by names of their own."""
    return [] if get_origin(annotation) in (dict, list, tuple, Mapping) else _models(annotation)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models(arg)]
