"""Make the sample of this folder, by the command that everybody has.

    python tests/samples/make.py

`jetssl simulate jetclass` makes 130 jets of each of the ten processes to train on, 20 to validate
on, 50 to test on. To keep the repository small, what follows from other branches (``part_deta``,
``part_dphi``, ``part_energy``) and the truth (``aux_``) are then left out, and LZMA compresses.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import uproot

HERE = Path(__file__).parent
LEFT_OUT = ("npart", "part_deta", "part_dphi", "part_energy", "aux_")
SPLITS = {"train": 130, "val": 20, "test": 50}


def cut(source: Path, out: Path) -> None:
    """Write a file again, with less in it."""
    with uproot.open(source) as file:
        tree = file["tree"]
        names = [name for name in tree.keys() if not name.startswith(LEFT_OUT)]  # noqa: SIM118
        arrays = tree.arrays(names)
    out.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(out, compression=uproot.LZMA(9)) as file:
        types = {name: arrays[name].type.content for name in names}
        new = file.mktree("tree", types, counter_name=lambda _: "npart", title="jets")
        new.extend({name: arrays[name] for name in names})


def main() -> None:
    """Simulate, and cut."""
    command = [str(Path(sys.executable).with_name("jetssl")), "simulate", "jetclass"]
    shutil.rmtree(HERE / "jetclass", ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        for split, jets in SPLITS.items():
            words = ["--num-jets", str(jets), "--split", split, "--out", f"{name}/{split}"]
            subprocess.run([*command, *words], check=True)
            for path in sorted(Path(name, split).rglob("*.root")):
                cut(path, HERE / "jetclass" / split / path.name)


if __name__ == "__main__":
    main()
