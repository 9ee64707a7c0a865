"""``jetssl pretrain``: train an encoder without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt

from jetssl_cli.config import (
    Layer,
    last_said,
    load,
    override_layer,
    shipped,
    shipped_file,
    shipped_names,
)
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import SCALING_JETS, Scaling, fitted_scaling
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.tokenizer import TokenizeConfig, Tokenizer, fitted_tokenizer
from jetssl_cli.encoder.encoder import Encoder, EncoderConfig
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives import ObjectiveConfig
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs import budget, checkpoint, weightfile
from jetssl_cli.runs.prepared import Prepared, note_single_class, read_schema
from jetssl_cli.runs.run_config import RunConfig
from jetssl_cli.runs.sources import require_same_sources
from jetssl_cli.runs.training import check, run


class PretrainConfig(RunConfig):
    """Everything that defines a pretraining run."""

    command: Literal["pretrain"] = "pretrain"
    objective: ObjectiveConfig
    """The method."""
    scaling_jets: PositiveInt = SCALING_JETS
    """The scaling of the features is fitted on the first so many training jets."""


def load_config(
    method: str | None,
    size: str | None,
    options: Layer,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> PretrainConfig:
    """Lay presets, the user's file, options and overrides over each other, in this order.

    The presets are that of the method, which the user's file or an override may say as well, that
    of the size (base if not given), and what the method has different at this size, if anything.

    Raises:
        ConfigError: no such method or size, a setting that is not valid, or what is asked for is
            not what the file, or the run that goes on, has.
    """
    own_file = [Layer.read(config)] if config else []
    run = checkpoint.resumed(options)
    if run is not None:
        cfg = checkpoint.continued(PretrainConfig, run, [*own_file, options], overrides)
        if method not in (None, cfg.objective.name):
            raise ConfigError(f"--method {method}: the run in {run} is one of {cfg.objective.name}")
        if size is not None:
            own = {"data": cfg.data.model_dump(mode="json")}
            layers = [Layer("run", own), *_presets(cfg.objective.name, size), *own_file, options]
            wanted = load(PretrainConfig, budget.latest(layers, overrides)).encoder
            if wanted.plain != cfg.encoder.plain:
                raise ConfigError(f"--size {size}: the run in {run} has another encoder")
        return cfg
    said = last_said([*own_file, *map(override_layer, overrides)], "objective", "name")
    if method and said in set(shipped_names("configs/pretrain")) - {method}:
        where = config or "overrides"
        raise ConfigError(f"--method {method}: objective.name is {said!r} in {where}")
    layers = [*_presets(method or str(said or ""), size or "base"), *own_file, options]
    return load(PretrainConfig, budget.latest(layers, overrides))


def _presets(method: str, size: str) -> list[Layer]:
    both = shipped("configs") / "pretrain" / method / f"{size}.yaml"
    return [
        Layer.read(shipped_file("configs/pretrain", method, "method")),
        Layer.read(shipped_file("configs/size", size, "size")),
        *([Layer.read(both)] if both.is_file() else []),
    ]


def pretrain(cfg: PretrainConfig) -> Path:
    """Pretrain, and return the folder of the run; there is nothing to do for a complete one.

    Raises:
        ConfigError: the devices are not there, or cannot share a batch evenly, or a complete run
            was made of other data.
        DataError: the data cannot be read.
        RunError: the folder holds a run already, or the training had to stop.
    """
    check(cfg)
    if cfg.resume and checkpoint.is_complete(cfg.out):
        require_same_sources(cfg.out, cfg.data)
        return cfg.out
    return run(prepare(cfg))


def prepare(cfg: PretrainConfig, *, trial: bool = False) -> Prepared:
    """Open the data, fit what has to be fitted to them, and build the network.

    Of a ``trial`` nothing is kept, and a scaling that is not there yet is that of a few jets.

    Raises:
        ConfigError: settings contradict each other.
        DataError: the data cannot be read.
    """
    schema = read_schema(cfg.data)
    torch.manual_seed(cfg.train.seed)
    sample = Sample(
        cfg.data.train,
        num_jets=min(cfg.scaling_jets, cfg.data.num_jets or cfg.scaling_jets),
        max_constituents=cfg.data.max_constituents,
    )
    note_single_class(sample)
    scaling = fitted_scaling(sample, trial=trial)
    clusters = cfg.objective.clusters
    tokens = TokenizeConfig(
        files=cfg.data.train,
        clusters=clusters or 1,
        max_constituents=cfg.data.max_constituents,
    )
    tokenizer = fitted_tokenizer(tokens, scaling, keep=not trial) if clusters else None
    objective = cfg.objective.build(build_encoder(cfg.encoder, scaling, schema), tokenizer)
    weights = {checkpoint.MODEL: objective, checkpoint.BACKBONE: objective.exported()}
    return Prepared(cfg, schema, objective, weights)


def build_encoder(cfg: EncoderConfig, scaling: Scaling, schema: Schema) -> Encoder:
    """An encoder for data of this schema."""
    return cfg.build(scaling, len(schema.constituents), len(schema.ids), len(schema.jets))


def load_pretrained(run: Path) -> tuple[PretrainConfig, Schema, Objective]:
    """All that a pretraining run trained, ready to be used.

    Raises:
        RunError: not a pretraining run, or one without weights.
    """
    cfg = checkpoint.read_config(run, PretrainConfig)
    schema = checkpoint.read_schema(run)
    encoder = build_encoder(cfg.encoder.anywhere, Scaling.unfitted(schema), schema)
    clusters = cfg.objective.clusters
    tokenizer = Tokenizer.unfitted(schema, clusters) if clusters else None
    objective = cfg.objective.build(encoder, tokenizer)
    weightfile.restore(run / checkpoint.MODEL, objective)
    return cfg, schema, objective.eval()
