"""``jetssl finetune``: train a pretrained backbone, and a head on top of it, for a task."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from jetssl_cli.data.mixed import SAMPLES
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import SCALING_JETS, Scaling, fitted_scaling
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.stream import JetStream
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.errors import DataError, RunError
from jetssl_cli.objectives.downstream import Downstream, JetClassifier
from jetssl_cli.progress import note
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.embeddings import embedded
from jetssl_cli.runs.finetune_config import FinetuneConfig, check_mode
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.prepared import Prepared, Readers, read_schema
from jetssl_cli.runs.pretrain import build_encoder
from jetssl_cli.runs.sources import hash_of_backbone, require_same_sources
from jetssl_cli.runs.training import check, run
from jetssl_cli.runs.transfer import Transfer, load_backbone, transfer


def finetune(cfg: FinetuneConfig) -> Path:
    """Finetune, and return the folder of the run; there is nothing to do for a complete one.

    Raises:
        ConfigError: the devices are not there, or cannot share a batch evenly, settings contradict
            each other, or a complete run was made of other data or another backbone.
        DataError: the data cannot be read, or lack the truth or the classes that the task needs.
        RunError: the data do not fit the backbone, the folder holds a run already, or the
            training had to stop.
    """
    check(cfg)
    if cfg.resume and checkpoint.is_complete(cfg.out):
        require_same_sources(cfg.out, cfg.data, cfg.backbone, random=cfg.random)
        return cfg.out
    return run(prepare(cfg))


def prepare(cfg: FinetuneConfig, *, trial: bool = False) -> Prepared:
    """Open the data, load the backbone, and put the head on top of it.

    Of a ``trial`` nothing is kept, and a scaling that is not there yet is that of a few jets.

    Raises:
        ConfigError: settings contradict each other.
        DataError: the data cannot be read, lack the truth or the classes that the task needs, or
            are all of one class.
        RunError: the data do not fit the backbone.
    """
    check_mode(cfg)
    schema = read_schema(cfg.data)
    known = checkpoint.read_schema(cfg.backbone)
    how = transfer(schema, known, str(cfg.data.train[0]), cfg.backbone)
    if told := how.told():
        note(f"{cfg.data.train[0]}: {told}")
    if cfg.data.mixture is not None:
        jets = JetStream(cfg.data.train, batch_size=1, num_jets=cfg.data.num_jets)
        data = cfg.data.model_copy(update={"mixture": cfg.data.mixture.of(jets)})
        cfg = cfg.model_copy(update={"data": data})
        schema = schema.model_copy(update={"classes": SAMPLES})
    torch.manual_seed(cfg.train.seed)
    encoder = load_backbone(
        cfg.backbone,
        cfg.encoder,
        how,
        trained=not cfg.random,
        fitted=_fitted(cfg, how, trial),
        rescale=cfg.rescale,
    )
    objective = cfg.objective.build(encoder, len(schema.classes))
    if objective.classifies and cfg.data.mixture is None:
        _require_classes(cfg.data)
    if cfg.lora is not None:
        cfg.lora.add_to(encoder)
    through = partial(_embedded, cfg, encoder) if cfg.cache_embeddings else None
    weights = {checkpoint.MODEL: objective}
    known_by = hash_of_backbone(cfg.backbone, random=cfg.random)
    return Prepared(cfg, schema, objective, weights, through, known_by)


def load_finetuned(run: Path) -> tuple[FinetuneConfig, Schema, Downstream]:
    """The network of a finetuning run, ready to predict.

    Raises:
        RunError: not a finetuning run, or one without weights.
    """
    cfg = checkpoint.read_config(run, FinetuneConfig)
    schema = checkpoint.read_schema(run)
    encoder = build_encoder(cfg.encoder.anywhere, Scaling.unfitted(schema), schema)
    network = cfg.objective.build(encoder, len(schema.classes))
    weightfile.restore(run / checkpoint.MODEL, network)
    return cfg, schema, network.eval()


def load_classifier(run: Path) -> tuple[FinetuneConfig, Schema, JetClassifier]:
    """The classifier of jets of a finetuning run, ready to predict.

    Raises:
        RunError: not a finetuning run, one without weights, or one of another task.
    """
    cfg, schema, network = load_finetuned(run)
    if not isinstance(network, JetClassifier):
        raise RunError(f"{run}: was trained for {cfg.objective.name}, not to classify jets")
    return cfg, schema, network


def _require_classes(data: DataConfig) -> None:
    """Refuse jets of one class to learn classes from; tell the user of such to validate on."""
    train = Sample(data.train, num_jets=data.num_jets)
    val = Sample(data.val, num_jets=data.num_val_jets)
    if (name := train.only_class()) is not None:
        raise DataError(
            f"{train.name}: the {train.num_jets:,} jets to train on are all {name}; a classifier "
            "learns from two classes or more (jetssl merge mixes files)"
        )
    if val.is_all and (name := val.only_class()) is not None:
        note(f"{val.name}: the jets to validate on are all {name}; their accuracy says little")


def _fitted(cfg: FinetuneConfig, how: Transfer, trial: bool) -> Scaling | None:
    """The scaling of the data, where that of the backbone is not enough."""
    if not cfg.rescale and not how.unknown:
        return None
    num_jets = min(cfg.data.num_jets or SCALING_JETS, SCALING_JETS)
    sample = Sample(cfg.data.train, num_jets=num_jets, max_constituents=cfg.data.max_constituents)
    return fitted_scaling(sample, trial=trial)


def _embedded(cfg: FinetuneConfig, encoder: Encoder, readers: Readers) -> Readers:
    """The same readers, of jets that the frozen backbone has encoded."""
    half = cfg.train.arithmetic == "bf16-mixed"
    train, val = embedded(encoder, readers, half=half, limit=cfg.embeddings_memory)
    return train, val
