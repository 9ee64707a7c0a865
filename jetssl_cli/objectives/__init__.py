"""What a backbone can be trained for. A new method is one file, and one line in the union here."""

from __future__ import annotations

from jetssl_cli.objectives.ssfm import SSFMConfig

ObjectiveConfig = SSFMConfig
"""Settings of any self-supervised method."""
