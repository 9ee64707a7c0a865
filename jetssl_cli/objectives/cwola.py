"""Classification without labels: tell two mixed samples of jets.

    M1: N signal in B background --+
                                   +--> encoder --> attention pool --> logits of M2, M1
    M2: other B background --------+

With the likelihoods p_S and p_B of signal and background, and shares f1 > f2 of signal,

    p_M1 / p_M2 = (f1 p_S / p_B + 1 - f1) / (f2 p_S / p_B + 1 - f2),

which rises with p_S / p_B: the best test of M1 against M2 is the best test of signal against
background (Metodiev, Nachman and Thaler, arXiv:1708.02949, theorem 1). Here f2 = 0. The label of a
jet is the sample that it comes from (``data/mixed.py``); its class is never seen.
"""

from __future__ import annotations

from typing import Literal

from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.objectives.downstream import JetClassifier, JetClassifierConfig


class CWoLaConfig(JetClassifierConfig):
    """Settings of classification without labels."""

    name: Literal["cwola"] = "cwola"
    """Tells the methods apart."""

    def build(self, encoder: Encoder, num_classes: int) -> CWoLa:
        """Put a classifier of two samples on top of the encoder."""
        return CWoLa(self, encoder, num_classes)


class CWoLa(JetClassifier):
    """See the top of the module; its classes are the samples."""
