"""The best validation of a run, and the weights that had it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from jetssl_cli.encoder.lora import plain_state


class Best:
    """The smallest validation loss so far, and the weights that had it, in memory."""

    def __init__(self, keep: Mapping[str, nn.Module], agree: Callable[[float], float]) -> None:
        self.kept, self._agree = keep, agree
        self.loss, self.step = math.inf, 0
        self.since = 0
        """Validations since then."""
        self.weights: dict[str, dict[str, Tensor]] = {}

    def look(self, loss: float, step: int, *, write: bool) -> None:
        """Take note of a validation; ``write`` says whether this process holds the weights.

        All processes decide as the first one does: on different machines their losses may differ
        in the last digit.
        """
        loss = self._agree(loss)
        if not loss < self.loss:
            self.since += 1
            return
        self.loss, self.step, self.since = loss, step, 0
        if write:
            self.weights = {
                name: {k: v.detach().to("cpu", copy=True) for k, v in plain_state(module).items()}
                for name, module in self.kept.items()
            }
