"""The processes of a run, one for each device: who they are, how they start and end together.

torchrun or srun starts them, or else the first one starts the others of its machine and hands them
the resolved config; they find themselves in the environment that torchrun would make. A process
that fails ends them all. Lightning is imported when a training begins.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt
from rich.console import Console
from torch import distributed

from jetssl_cli.config import Strict, to_yaml
from jetssl_cli.errors import ConfigError, JetSSLError, RunError

if TYPE_CHECKING:
    import lightning
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.pytorch.strategies import Strategy

END_OF_CONFIG = "...\n"
"""Ends the config that a started process reads from its input, which then stays open."""
SECONDS_TO_FAIL = 10.0
"""After this a process that waits for one that has failed is ended by force."""
SECONDS_TO_END = 60.0
FAILED = 2
SHOWN = 2000
"""Characters shown of what a failed process has written."""


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
    """Keep Lightning from asking in every batch whether a process was told to stop.

    Every process would wait for its GPU to have done all that was queued. As it is, a process that
    is told to stop stops by itself after the batch, and the others with it as after any failure.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def agreement() -> Callable[[float], float]:
    """A function that gives all processes the value of the first one.

    It is a message of eight bytes between hosts, so that no process has to wait for its GPU.
    """
    hosts: distributed.ProcessGroup | None = None

    def agree(value: float) -> float:
        nonlocal hosts
        hosts = hosts or distributed.new_group(backend="gloo")
        said = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(said, 0, group=hosts)
        return float(said)

    return agree


@contextmanager
def together(cfg: Strict, place: Place, failed: Callable[[], None]) -> Iterator[None]:
    """Let the processes of a run work in the block, and end together.

    Args:
        cfg: of the run, for processes that are started here.
        place: of this process.
        failed: called before this process is ended by force, because another one has failed and
            this one waits for it.

    Raises:
        RunError: another process has failed; says why.
    """
    started = _Started(cfg, place.ranks, failed) if place.ranks > 1 and not place.starter else None
    try:
        yield
        if started:
            started.wait()
    except (JetSSLError, KeyboardInterrupt):
        raise
    except Exception as err:
        if started and (reason := started.failure(SECONDS_TO_FAIL)):
            raise RunError(reason) from err
        raise
    finally:
        if started:
            started.close()
        if place.ranks > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


class _Started:
    """The other processes of this machine."""

    def __init__(self, cfg: Strict, ranks: int, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._ended = threading.Event()
        self._before = dict(os.environ)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "jetssl",
            "RANK": "0",
            "LOCAL_RANK": "0",
        }
        self._said: list[IO[str]] = []
        self._processes = [self._start(cfg, rank) for rank in range(1, ranks)]
        threading.Thread(target=self._watch, daemon=True, name="processes").start()

    def _start(self, cfg: Strict, rank: int) -> subprocess.Popen[str]:
        said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._said.append(said)
        process = subprocess.Popen(
            [sys.executable, "-m", "jetssl_cli.runs.process"],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(to_yaml(cfg) + END_OF_CONFIG)
        process.stdin.flush()
        return process

    def wait(self) -> None:
        """Wait until the others have come to their end.

        Raises:
            RunError: one has not.
        """
        if reason := self.failure(SECONDS_TO_END):
            raise RunError(reason)

    def failure(self, timeout: float) -> str | None:
        """Why one of the processes has failed, if one does within so many seconds."""
        for _ in range(int(timeout * 10)):
            codes = [process.poll() for process in self._processes]
            for rank, code in enumerate(codes, start=1):
                if code:
                    return f"process {rank} of the run failed: {self._reason(rank)}"
            if all(code == 0 for code in codes):
                return None
            self._ended.wait(0.1)
        return None

    def close(self) -> None:
        """End what is left of them."""
        self._ended.set()
        for process, said in zip(self._processes, self._said, strict=True):
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
            said.close()
        os.environ.clear()
        os.environ |= self._before

    def _reason(self, rank: int) -> str:
        said = self._said[rank - 1]
        said.seek(0)
        text = said.read().strip()
        _, told, reason = text.rpartition("error: ")
        return reason if told else text[-SHOWN:] or "it was killed"

    def _watch(self) -> None:
        """End this process if another one has failed, and this one does not hear of it."""
        while not self._ended.wait(0.5):
            if any(process.poll() for process in self._processes):
                if self._ended.wait(SECONDS_TO_FAIL):
                    return
                reason = self.failure(1.0)
                Console(stderr=True).print(
                    f"error: {reason}", style="red", highlight=False, markup=False, soft_wrap=True
                )
                self._failed()
                for process in self._processes:
                    process.kill()
                os._exit(FAILED)
