"""From ROOT to packed batches."""

import os

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # locks fail on network file systems
