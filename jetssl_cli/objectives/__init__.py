"""What a backbone can be trained for. A new method is one file, and one line in the union here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jetssl_cli.objectives.cwola import CWoLaConfig
from jetssl_cli.objectives.dino import DINOConfig
from jetssl_cli.objectives.gpt import GPTConfig
from jetssl_cli.objectives.jepa import JEPAConfig
from jetssl_cli.objectives.mpm import MPMConfig
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.objectives.track_origin import TrackOriginConfig
from jetssl_cli.objectives.vertex import VertexConfig

ObjectiveConfig = Annotated[
    SSFMConfig | MPMConfig | GPTConfig | DINOConfig | JEPAConfig,
    Field(discriminator="name"),
]
"""Settings of any self-supervised method."""

TaskConfig = Annotated[
    SupervisedConfig | TrackOriginConfig | VertexConfig | CWoLaConfig,
    Field(discriminator="name"),
]
"""Settings of any task that a backbone is finetuned for."""
