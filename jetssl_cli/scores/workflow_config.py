"""Settings of ``jetssl workflow``, which its Snakefile reads as well."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from jetssl_cli.config import Layer, Strict, load, parts, shipped_file, shipped_names
from jetssl_cli.errors import ConfigError, suggest
from jetssl_cli.runs.budget import seconds
from jetssl_cli.safeyaml import read_yaml

PRESETS = "configs/pretrain"
JETCLASS = {"train": "train_100M", "val": "val_5M", "test": "test_20M"}
"""Folders of JetClass."""


def _method(name: str) -> str:
    if name not in (known := all_methods()):
        raise ValueError(f"no method {name!r}; {suggest(name, known)}")
    return name


def _methods(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        _method(name)
    if len(set(names)) < len(names):
        raise ValueError("a method is named twice")
    return names


def _size(name: str) -> str:
    shipped_file("configs/size", name, "size")
    return name


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _jets_or_time(value: int | str) -> int | str:
    if isinstance(value, str):
        try:
            seconds(value)
        except ValueError as err:
            raise ValueError(f"a number of jets, or {err}") from None
    return value


def all_methods() -> tuple[str, ...]:
    """The methods that have a preset."""
    return tuple(shipped_names(PRESETS))


Budget = Annotated[PositiveInt | str, BeforeValidator(_number), AfterValidator(_jets_or_time)]


class SimulatedJets(Strict):
    """Jets of each of the ten processes."""

    train: PositiveInt
    val: PositiveInt
    test: PositiveInt


class Trainings(Strict):
    """What all trainings of a kind have in common."""

    budget: Budget
    """Jets that each of them sees, or its time, such as 24h."""
    settings: tuple[str, ...] = ()
    """Further settings of each, as ``section.key=value``."""

    def words(self, seed: int | str) -> list[str]:
        """Words of the command line."""
        kind = "--max-time" if isinstance(self.budget, str) else "--jets"
        return [kind, str(self.budget), f"train.seed={seed}", *self.settings]

    @property
    def minutes(self) -> int:
        """The time of one, where that is its budget; else 0."""
        return round(seconds(self.budget) / 60) if isinstance(self.budget, str) else 0


class SlurmConfig(Strict):
    """What each job asks SLURM for."""

    account: str | None = None
    partition: str | None = None
    gpu_partition: str | None = None
    """Partition of trainings and exports, if another."""
    gres: str | None = None
    """What trainings and exports ask for besides, such as gpu:1 or gpu:a100:1."""
    memory: str = "16GB"
    """Memory of a job."""
    minutes: PositiveInt = 120
    """Time limit of a job; that of a training comes on top, where it is its budget."""
    extra: str | None = None
    """Further options of sbatch."""


class WorkflowConfig(Strict):
    """What is trained, how long, and where."""

    out: Path = Path("workflow")
    """Folder of all that is made."""
    size: Annotated[str, AfterValidator(_size)]
    """Size of the encoders."""
    methods: Annotated[
        tuple[str, ...], BeforeValidator(parts), AfterValidator(_methods), Field(min_length=1)
    ] = Field(default_factory=all_methods)
    """Methods of pretraining."""
    seeds: PositiveInt = 3
    """So many trainings of each kind; a table averages over them."""
    jetclass: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    """Folder of JetClass, with train_100M, val_5M and test_20M; else jets are simulated."""
    simulate: SimulatedJets
    pretrain: Trainings
    """The same for all methods."""
    finetune: Trainings
    """The same for all classifiers, those of the baselines among them."""
    profile: str = "local"
    """Where jobs run: local, slurm, or a folder with a Snakemake profile of your own."""
    jobs: PositiveInt | None = None
    """Cores to use, or SLURM jobs at a time; by default all cores, or as the profile says."""
    threads: PositiveInt = 1
    """Cores of each training and export."""
    data_jobs: PositiveInt = 8
    """Cores of each simulation and conversion; of this machine at most ``jobs``."""
    container: str | None = None
    """Image that has jetssl, for Apptainer: a file, or docker://..."""
    container_args: str = ""
    """Options of Apptainer, such as --nv."""
    baselines_of: Annotated[str, AfterValidator(_method)] | None = None
    """The method whose backbones give the baselines their architecture; in a folder that holds a
    workflow the one that it began with."""
    slurm: SlurmConfig = SlurmConfig()
    snakemake: tuple[str, ...] = ()
    """Further words for Snakemake, such as files to make instead of the report."""

    def has_data(self, split: str) -> bool:
        """Whether the jets of a split are there already."""
        return (self.out / "data" / f"{split}.h5").is_file()

    @property
    def plain(self) -> str:
        """The method whose backbones give the baselines their architecture.

        As told, or the first one that leaves the architecture as the size has it.
        """
        if self.baselines_of is not None:
            return self.baselines_of
        own = {
            name: "encoder" in read_yaml(shipped_file(PRESETS, name, "method"))
            for name in self.methods
        }
        return min(self.methods, key=lambda name: own[name])

    def command(self, *words: object) -> str:
        """A command of JetSSL for a shell."""
        own = ["jetssl"] if self.container else [sys.executable, "-m", "jetssl_cli"]
        return shlex.join([*own, *map(str, words)])


def load_config(
    size: str, options: Layer, *, config: Path | None = None, overrides: Sequence[str] = ()
) -> WorkflowConfig:
    """Lay the preset of a size, the user's file, options and overrides over each other.

    Raises:
        ConfigError: no such size, or a setting that is not valid.
    """
    layers = [
        Layer.read(shipped_file("configs/workflow", size, "size")),
        Layer("--size", {"size": size}),
        *([Layer.read(config)] if config else []),
        options,
    ]
    cfg = load(WorkflowConfig, layers, overrides)
    if cfg.size != size:
        raise ConfigError(f"size = {cfg.size}: say --size {cfg.size}, which has numbers of its own")
    return cfg
