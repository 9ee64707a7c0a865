"""Cut the sample of this folder from larger ROOT files of the same schema.

    python tests/samples/make.py FOLDER_OF_ROOT_FILES

Takes the first 200 jets of each file: 130 to train on, 20 to validate on, 50 to test on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import awkward as ak
import uproot

LEFT_OUT = ("npart_", "part_deta", "part_dphi", "part_energy")
"""Counters, and what follows from the momenta or is in no recipe."""
SPLITS = {"train": (0, 130), "val": (130, 150), "test": (150, 200)}


def cut(source: Path, here: Path) -> None:
    """Write the three parts of one file."""
    tree = uproot.open(source)["tree"]
    names = [name for name in tree.keys() if not name.startswith(LEFT_OUT)]  # noqa: SIM118
    for split, (start, stop) in SPLITS.items():
        arrays = tree.arrays(names, entry_start=start, entry_stop=stop)
        out = here / "jetclass" / split / source.name
        out.parent.mkdir(parents=True, exist_ok=True)
        with uproot.recreate(out, compression=uproot.LZMA(9)) as file:
            file.mktree("tree", {name: arrays[name].type.content for name in names}, title="jets")
            file["tree"].extend({name: ak.to_packed(arrays[name]) for name in names})


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.root")):
        cut(path, Path(__file__).parent)
