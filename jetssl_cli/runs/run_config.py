"""What every training run is defined by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import HALF_PRECISION, has_fast_bf16
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.runs.budget import BudgetConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig, Pace
from jetssl_cli.runs.processes import DeviceConfig
from jetssl_cli.runs.snapshot import CheckpointConfig


def _word(value: object) -> object:
    return str(value) if value == 32 else value


class TrainConfig(BudgetConfig, DeviceConfig):
    """Settings of the training loop."""

    val_every: PositiveInt = 1000
    """Steps between validations."""
    log_every: PositiveInt = 10
    """Steps between two records of the training loss."""
    patience: PositiveInt | None = None
    """End after so many validations without a smaller loss; by default the budget alone ends it."""
    keep: Literal["last", "best"] = "last"
    """Save the last weights, or those of the smallest validation loss (finetuning does)."""
    probe_every: PositiveInt = 50
    """Steps between two steps of the probe (pretraining only)."""
    precision: Annotated[Literal["auto", "32", "bf16-mixed"], BeforeValidator(_word)] = "auto"
    """Arithmetic; auto is bf16-mixed on GPUs since Ampere and on CPUs with bf16 instructions, 32
    elsewhere."""
    compile: bool = False
    """Faster steps: on a GPU networks are recorded in CUDA graphs; on a CPU torch.compile compiles
    their blocks, with a C++ compiler, for a minute or more at the start."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the order of the data and all randomness of the method; process number
    r of several draws masks, noise and dropout from seed + 1,000,003 r: other numbers than any
    process of a run with the next seeds."""

    @property
    def arithmetic(self) -> Literal["32", "bf16-mixed"]:
        """The precision on this machine."""
        if self.precision == "auto":
            return "bf16-mixed" if has_fast_bf16() else "32"
        return self.precision


class RunConfig(Strict):
    """What every training run is defined by."""

    command: str
    """Tells the kinds of runs apart."""
    out: Path
    """Folder of the run."""
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: bool = True
    """Record the run with MLflow."""
    resume: bool = False
    """Go on with the run in this folder; begin it, if there is none."""
    encoder: EncoderConfig = EncoderConfig()
    """The backbone."""

    @model_validator(mode="after")
    def _attention_in_its_precision(self) -> RunConfig:
        if self.encoder.attention in HALF_PRECISION and self.train.precision == "32":
            raise ValueError(
                f"encoder.attention {self.encoder.attention} computes in half precision, but "
                "train.precision is 32"
            )
        return self

    @property
    def pace(self) -> Pace:
        """How the encoder learns beside the rest."""
        return Pace()
