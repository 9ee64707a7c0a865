"""Everything with a clock: training, tracking, checkpoints."""
