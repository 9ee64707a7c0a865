"""Everything that defines a finetuning run, and the ways to treat its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, NonNegativeInt, PositiveInt, model_validator

from jetssl_cli.config import Layer, last_said, load, override_layer, shipped_file, shipped_names
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.encoder.lora import LoRAConfig
from jetssl_cli.errors import ConfigError
from jetssl_cli.objectives import TaskConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs import budget, checkpoint
from jetssl_cli.runs.optim import OptimConfig, Pace
from jetssl_cli.runs.pretrain import PretrainConfig
from jetssl_cli.runs.run_config import RunConfig, TrainConfig
from jetssl_cli.safeyaml import read_yaml

EMBEDDINGS_MEMORY = ByteSize(8 * 2**30)


class FinetuneConfig(RunConfig):
    """Everything that defines a finetuning run."""

    command: Literal["finetune"] = "finetune"
    optim: OptimConfig = OptimConfig(weight_decay=0.01)
    train: TrainConfig = TrainConfig(steps=20_000, keep="best")
    backbone: Path
    """Folder of the pretraining run whose encoder is used."""
    random: bool = False
    """Take the architecture and the scaling of the backbone, but not its weights."""
    unfreeze_at: PositiveInt | None = None
    """Keep the backbone frozen before this step."""
    catch_up_steps: NonNegativeInt = 1000
    """Then its learning rate rises to that of the head over so many steps, but at most a tenth of
    those that are left."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate falls by this factor from block to block, from the last one down."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters of the blocks instead of the backbone."""
    rescale: bool = False
    """Fit the scaling of the features anew, on the first million of the training jets."""
    cache_embeddings: bool = False
    """Encode all jets once, with a frozen backbone, and hold the answers in memory."""
    embeddings_memory: ByteSize = EMBEDDINGS_MEMORY
    """Most memory that they may take."""
    encoder: EncoderConfig
    """The encoder of the backbone."""
    objective: TaskConfig = SupervisedConfig()
    """The task."""

    @model_validator(mode="after")
    def _mixture_of_cwola(self) -> FinetuneConfig:
        if (self.objective.name == "cwola") != (self.data.mixture is not None):
            raise ValueError(
                "the task cwola, and no other, needs data.mixture (--signal and --num-signal)"
            )
        return self

    @property
    def pace(self) -> Pace:
        """How the backbone learns beside the head."""
        return Pace(self.unfreeze_at or 0, self.catch_up_steps, self.layer_decay)


def mode(
    *,
    frozen: bool = False,
    full: bool = False,
    from_scratch: bool = False,
    random: bool = False,
    unfreeze_at: int | None = None,
    lora: int | None = None,
) -> dict[str, Any]:
    """The settings of one way to treat the backbone; none where nothing is asked for.

    Args:
        frozen: keep it as it is.
        full: train all of it from the start.
        from_scratch: the same, with new weights.
        random: new weights, frozen: a baseline.
        unfreeze_at: frozen before this step.
        lora: train adapters of this rank.

    Raises:
        ConfigError: two are given.
    """
    ways = {
        "--frozen": frozen,
        "--full": full,
        "--from-scratch": from_scratch,
        "--random": random,
        "--unfreeze-at": unfreeze_at is not None,
        "--lora": lora is not None,
    }
    given = [name for name, asked in ways.items() if asked]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are both given; they exclude each other")
    if not given:
        return {}
    return {
        "random": from_scratch or random,
        "unfreeze_at": unfreeze_at,
        "lora": None if lora is None else {"rank": lora},
        "objective": {"frozen": frozen or random},
    }


def load_config(
    backbone: Path | None,
    options: Layer,
    *,
    task: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> FinetuneConfig:
    """Lay the preset, what the backbone fixes, the user's file, options and overrides in order.

    The preset is that of the task, which is that of the user's file or classification if not given.
    The backbone may be that of the file, or of an override.

    Raises:
        ConfigError: no such task, a setting that is not valid, or what is asked for is not what the
            file, or the run that goes on, has.
        RunError: the backbone is not a pretraining run.
    """
    own_file = [Layer.read(config)] if config else []
    run = checkpoint.resumed(options)
    if run is not None:
        _require_mixture(run, options)
        cfg = checkpoint.continued(FinetuneConfig, run, [*own_file, options], overrides)
        if task is not None and (name := cfg.objective.name) != _objective_of(task):
            raise ConfigError(f"--task {task}: the run in {run} is one of {name}")
        return cfg
    words = [*map(override_layer, overrides)]
    named = last_said([*own_file, *words], "objective", "name")
    known = {_objective_of(name) for name in shipped_names("configs/finetune")}
    if task and named in known - {_objective_of(task)}:
        raise ConfigError(f"--task {task}: objective.name is {named!r} in {config or 'overrides'}")
    backbone = Path(str(last_said([*own_file, options, *words], "backbone") or backbone))
    source = checkpoint.read_config(backbone, PretrainConfig)
    task = task or ("classify" if named in (None, "supervised") else str(named))
    return on_backbone(source, backbone, [*own_file, options], task=task, overrides=overrides)


def _require_mixture(run: Path, options: Layer) -> None:
    """Refuse an option of the mixture where the run that goes on has none, nor a use for it."""
    before = checkpoint.read_config(run, FinetuneConfig)
    said = [each for key, each in options.options.items() if key.startswith("data.mixture.")]
    if said and before.data.mixture is None:
        raise ConfigError(f"{said[0]}: the run in {run} is one of {before.objective.name}")


def on_backbone(
    source: PretrainConfig,
    backbone: Path,
    layers: Sequence[Layer],
    *,
    task: str = "classify",
    overrides: Sequence[str] = (),
) -> FinetuneConfig:
    """Lay the preset of a task, what a backbone fixes, layers and overrides in order.

    Raises:
        ConfigError: no such task, or a setting that is not valid.
    """
    preset = Layer.read(shipped_file("configs/finetune", task, "task"))
    inherited = {
        "encoder": source.encoder.model_dump(mode="json", exclude={"attention"}),
        "data": {
            "batch_size": source.data.batch_size,
            "max_constituents": source.data.max_constituents,
        },
    }
    layers = [preset, Layer(str(backbone / checkpoint.CONFIG), inherited), *layers]
    return load(FinetuneConfig, budget.latest(layers, overrides))


def check_mode(cfg: FinetuneConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: names both.
    """
    frozen, late = cfg.objective.frozen, cfg.unfreeze_at or 0
    rules = (
        (frozen and late, "unfreeze_at", "a backbone with objective.frozen is never trained"),
        (frozen and cfg.lora, "lora", "a backbone with objective.frozen is never trained"),
        (
            frozen and cfg.layer_decay < 1,
            "layer_decay",
            "with objective.frozen no layer is trained",
        ),
        (late and cfg.lora, "unfreeze_at", "with lora the backbone itself is never trained"),
        (late and cfg.random, "unfreeze_at", "a random backbone is either frozen or trained"),
        (cfg.lora and cfg.random, "lora", "adapters are for a trained backbone, not a random one"),
        (
            cfg.cache_embeddings and not frozen,
            "cache_embeddings",
            "the backbone has to be frozen (--frozen, --random)",
        ),
        (
            cfg.cache_embeddings and cfg.objective.name != "supervised",
            "cache_embeddings",
            f"is not made for objective.name = {cfg.objective.name}",
        ),
        (
            cfg.cache_embeddings and not cfg.data.in_memory,
            "cache_embeddings",
            "needs data.in_memory = true, whose batches it has",
        ),
        (
            cfg.cache_embeddings and cfg.data.workers > 0,
            "cache_embeddings",
            "needs data.workers = 0: nothing is left to read",
        ),
        (
            cfg.cache_embeddings and (cfg.train.devices != 1 or cfg.train.nodes != 1),
            "cache_embeddings",
            "is for a single device (train.devices = 1): the head alone is trained",
        ),
    )
    for broken, name, rule in rules:
        if broken:
            raise ConfigError(f"{name} = {getattr(cfg, name)}: {rule}")


def _objective_of(task: str) -> str:
    return str(read_yaml(shipped_file("configs/finetune", task, "task"))["objective"]["name"])
