"""From checkpoints to scores, and from scores to tables."""
