"""The processes of a run, one for each device: who they are, and what they share.

Lightning is imported when a training begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, distributed

from jetssl_cli.config import Strict
from jetssl_cli.errors import ConfigError

if TYPE_CHECKING:
    import lightning
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.pytorch.strategies import Strategy


class DeviceConfig(Strict):
    """How many processes train together."""

    devices: PositiveInt | Literal["auto"] = 1
    """GPUs of each machine, or processes where there are none; auto: all that are visible."""
    nodes: PositiveInt = 1
    """Machines; on more than one, torchrun or srun starts the processes."""
    accumulate: PositiveInt = 1
    """Parts of a batch that a process handles one after the other, to save memory."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of the run."""

    rank: int
    devices: int
    """Processes of each machine."""
    nodes: int
    starter: Literal["torchrun", "srun"] | None
    """What started the processes; None where this one has to."""

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return self.devices * self.nodes

    @property
    def first(self) -> bool:
        """This is the process that writes and prints."""
        return self.rank == 0

    def jets_at_a_time(self, batch_size: int, accumulate: int) -> int:
        """What a process reads at a time of a batch that all of them share.

        Raises:
            ConfigError: the batch cannot be shared evenly.
        """
        parts = self.ranks * accumulate
        if batch_size % parts:
            nearest = -(-batch_size // parts) * parts
            raise ConfigError(
                f"data.batch_size = {batch_size}: must be a multiple of {parts} (train.devices = "
                f"{self.devices}, train.nodes = {self.nodes}, train.accumulate = {accumulate}), "
                f"such as {nearest}"
            )
        return batch_size // parts


def find(cfg: DeviceConfig, environment: Mapping[str, str] = os.environ) -> Place:
    """Where this process stands, as far as the environment says.

    Raises:
        ConfigError: there are other processes or fewer GPUs than the config wants.
    """
    starter: Literal["torchrun", "srun"] | None = None
    rank, started = 0, 1
    if "TORCHELASTIC_RUN_ID" in environment:
        starter = "torchrun"
        rank, started = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    elif (tasks := int(environment.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
        starter, rank, started = "srun", int(environment["SLURM_PROCID"]), tasks
    gpus = torch.cuda.device_count()
    if cfg.devices == "auto":
        devices = started // cfg.nodes if starter else max(gpus, 1)
    else:
        devices = cfg.devices
    place = Place(rank, devices, cfg.nodes, starter)
    wanted = f"train.devices = {devices} and train.nodes = {cfg.nodes}"
    if starter and started != place.ranks:
        raise ConfigError(f"{starter} has started {started} processes; {wanted} need {place.ranks}")
    if not starter and cfg.nodes > 1:
        raise ConfigError(
            f"train.nodes = {cfg.nodes}: on several machines the processes are started by torchrun "
            "or srun"
        )
    if 0 < gpus < devices:
        raise ConfigError(f"train.devices = {devices}: there are {gpus} GPUs")
    return place


def strategy(place: Place) -> Strategy | Literal["auto"]:
    """How Lightning lets the processes train one network."""
    if place.ranks == 1:
        return "auto"
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(
        cluster_environment=cluster(place),
        broadcast_buffers=False,  # what changes, the objectives keep equal
        gradient_as_bucket_view=True,
    )


def cluster(place: Place) -> ClusterEnvironment:
    """Where Lightning learns of the other processes."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if place.ranks == 1:
        return LightningEnvironment()
    if place.starter == "srun":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment()


def let_run_ahead(trainer: lightning.Trainer) -> None:
    """Leave signals to ``runs.signals``, and keep Lightning from asking for them in every batch.

    Every process would wait for its GPU to have done all that was queued.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class Hosts:
    """What the processes of a run tell each other, from host to host.

    These are small messages, not through the GPUs, so that no process has to wait for its own.
    """

    def __init__(self, ranks: int) -> None:
        self.alone = ranks == 1
        self._group: distributed.ProcessGroup | None = None

    @property
    def _hosts(self) -> distributed.ProcessGroup:
        self._group = self._group or distributed.new_group(backend="gloo")
        return self._group

    def first(self, value: float) -> float:
        """The value of the first process."""
        if self.alone:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(said, 0, group=self._hosts)
        return float(said)

    def most(self, values: list[float]) -> list[float]:
        """The largest of each value."""
        if self.alone:
            return values
        said = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(said, distributed.ReduceOp.MAX, group=self._hosts)
        return [float(value) for value in said]

    def all(self, x: Tensor) -> list[Tensor]:
        """The tensor of each process, in their order; they have one shape, and are on the host."""
        if self.alone:
            return [x]
        found = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(found, x, group=self._hosts)
        return found
