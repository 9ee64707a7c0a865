"""From ROOT to packed batches."""
