"""A backbone for other data than it was pretrained on: columns go by their names.

The encoder is rebuilt for the columns of the new data, and its weights follow:

- A feature that both have keeps its scaling and its weights, wherever its column is.
- A feature that the new data lack is left out of the first layer, which is the same as a scaled
  value of 0, the middle of its distribution: what a missing impact parameter is.
- A feature that the backbone does not know is scaled by the new training jets, and begins with
  weights of 0: a frozen backbone does not see it, any other can learn to use it.
- Without particle classes every constituent counts as a charged hadron: half way between the
  vectors of both charges. Particle classes that the backbone does not know have the vector 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.encoder.encoder import Encoder, EncoderConfig
from jetssl_cli.errors import RunError
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.pretrain import build_encoder

CHARGED_HADRONS = ("hadron-", "hadron+")


@dataclass(frozen=True)
class Transfer:
    """How the columns of some data go with those of a backbone."""

    schema: Schema
    """Of the data."""
    known: Schema
    """Of the backbone."""

    @property
    def missing(self) -> list[str]:
        """Features of the backbone that the data lack."""
        return self._without(self.known, self.schema)

    @property
    def unknown(self) -> list[str]:
        """Features of the data that the backbone does not know."""
        return self._without(self.schema, self.known)

    @staticmethod
    def _without(one: Schema, other: Schema) -> list[str]:
        pairs = ((one.constituents, other.constituents), (one.jets, other.jets))
        return [f.name for own, its in pairs for f in own if f.name not in _names(its)]

    def told(self) -> str:
        """What does not go together, in words; nothing if all does."""
        parts = []
        if self.missing:
            parts.append(f"missing: {', '.join(self.missing)}")
        if self.unknown:
            parts.append(f"unknown to the backbone: {', '.join(self.unknown)}")
        if self.known.ids and not self.schema.ids:
            parts.append("no particle classes: all constituents count as charged hadrons")
        elif self.schema.ids and not self.known.ids:
            parts.append("the backbone knows no particle classes")
        return "; ".join(parts)


def transfer(schema: Schema, known: Schema, data: str, run: Path) -> Transfer:
    """Compare the columns of some data with those of a backbone.

    Raises:
        RunError: a unit differs, or no constituent feature is the same.
    """
    for own, its in ((schema.constituents, known.constituents), (schema.jets, known.jets)):
        units = {feature.name: feature.unit for feature in its}
        for feature in own:
            unit = units.get(feature.name, feature.unit)
            if unit != feature.unit:
                raise RunError(
                    f"{data}: {feature.name} is in {_unit(feature.unit)}, {run} was trained with "
                    f"{_unit(unit)}; convert the data with a recipe that has this unit"
                )
    if not set(_names(schema.constituents)) & set(_names(known.constituents)):
        raise RunError(
            f"{data}: its constituents are {', '.join(_names(schema.constituents))}; {run} was "
            f"trained on {', '.join(_names(known.constituents))}: no feature is the same"
        )
    return Transfer(schema, known)


def load_backbone(
    run: Path,
    cfg: EncoderConfig,
    how: Transfer,
    *,
    trained: bool = True,
    fitted: Scaling | None = None,
    rescale: bool = False,
) -> Encoder:
    """The encoder of a pretraining run, for other data; untrained, it keeps the scaling alone.

    Args:
        run: folder of the pretraining.
        cfg: of its encoder.
        how: the columns go together.
        trained: take its weights.
        fitted: scaling of the data, used for what the backbone does not know.
        rescale: use it for all features.

    Raises:
        RunError: the run has no such weights.
    """
    encoder = build_encoder(cfg, Scaling.unfitted(how.schema), how.schema)
    with torch.random.fork_rng() if trained else nullcontext():  # heads begin as they always did
        source = build_encoder(cfg, Scaling.unfitted(how.known), how.known)
    weightfile.restore(run / checkpoint.BACKBONE, source)
    weights = adapted(source.state_dict(), how, fitted, rescale=rescale)
    if not trained:
        scaling = {key: value for key, value in weights.items() if key.startswith("scaling.")}
        weights = encoder.state_dict() | scaling
    encoder.load_state_dict(weights)
    return encoder


def adapted(
    weights: Mapping[str, Tensor],
    how: Transfer,
    fitted: Scaling | None = None,
    *,
    rescale: bool = False,
) -> dict[str, Tensor]:
    """The weights of an encoder of the known columns, for one of those of the data."""
    found = dict(weights)
    parts = (
        ("constituents", how.schema.constituents, how.known.constituents, "embed"),
        ("jets", how.schema.jets, how.known.jets, "embed_jet"),
    )
    for part, features, known, layer in parts:
        key = f"scaling.{part}.quantiles"
        rows = None if fitted is None else fitted.state_dict()[f"{part}.quantiles"]
        scaled = [] if rescale else _names(known)
        found[key] = _by_name(weights[key], _names(features), scaled, rows)
        key = f"{layer}.0.weight"
        if key in weights:
            columns = _by_name(weights[key].t(), _names(features), _names(known))
            found[key] = columns.t().contiguous()
    ids, known_ids = how.schema.ids, how.known.ids
    if ids and known_ids:
        found["embed_id.weight"] = _by_name(weights["embed_id.weight"], ids, known_ids)
    elif ids:
        found["embed_id.weight"] = torch.zeros(len(ids), len(weights["out.bias"]))
    elif known_ids:
        last = max(key for key in weights if key.startswith("embed.") and key.endswith(".bias"))
        table = found.pop("embed_id.weight")
        charged = [known_ids.index(name) for name in CHARGED_HADRONS if name in known_ids]
        found[last] = weights[last] + table[charged or slice(None)].mean(0)
    return found


def _by_name(
    rows: Tensor, names: Sequence[str], known: Sequence[str], otherwise: Tensor | None = None
) -> Tensor:
    """The row of each name; where it is not known the one of ``otherwise``, or zeros."""
    spare = rows.new_zeros(len(names), *rows.shape[1:]) if otherwise is None else otherwise
    return torch.stack(
        [
            rows[known.index(name)] if name in known else spare[place]
            for place, name in enumerate(names)
        ]
    )


def _names(features: Sequence[Feature]) -> list[str]:
    return [feature.name for feature in features]


def _unit(unit: str) -> str:
    return "no unit" if unit == "1" else unit
