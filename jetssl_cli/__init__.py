"""Self-supervised learning on particle-physics jets."""

__version__ = "0.1.0"
