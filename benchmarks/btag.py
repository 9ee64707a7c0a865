"""Simulated b-tagging jets: what their tracks come from, and how far they are displaced.

    python benchmarks/btag.py FOLDER

FOLDER holds ROOT files as `jetssl simulate btag` makes them. Prints a Markdown table and one line
of JSON; exit code 1 where the positive tail of the lifetime-signed d0 is not largest for bottom and
smallest for light jets, or is not larger than the negative one for bottom jets.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import load_recipe

D0, D0_ERR, ORIGIN = 3, 4, 1
"""Places of the columns of the recipe."""
TAIL = 3.0
CLASSES = ("light", "charm", "bottom")


def read(folder: Path) -> JetArrays:
    """Jets of all files."""
    recipe = load_recipe("btag")
    with tempfile.TemporaryDirectory() as name:
        report = convert(ConvertConfig(sources=(folder,), recipe=recipe, out=Path(name)))
        parts = []
        for made in report.files:
            with JaggedFile(made.output) as file:
                parts.append(file.read())
    return concatenate(parts)


def main() -> int:
    """Print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    jets = read(parser.parse_args().folder)
    owner = np.repeat(jets.labels, jets.sizes)
    significance = jets.features[:, D0] / jets.features[:, D0_ERR]
    print("| class | jets | jet pt, median [GeV] | tracks, mean | primary | from c | from b | "
          "other | d0/d0_err > 3 | < -3 |")  # fmt: skip
    print("|---|" + "---|" * 9)
    tails = {}
    for label, name in enumerate(CLASSES):
        here, tracks = jets.labels == label, owner == label
        shares = np.bincount(jets.truth[tracks, ORIGIN], minlength=4) / tracks.sum()
        s = significance[tracks]
        tails[name] = (float((s > TAIL).mean()), float((s < -TAIL).mean()))
        cells = [f"{here.sum():,}", f"{np.median(jets.jets[here, 0]):.0f}",
                 f"{jets.sizes[here].mean():.1f}",
                 *(f"{x:.1%}" for x in (*shares, *tails[name]))]  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |")
    light, charm, bottom = (tails[name] for name in CLASSES)
    holds = bottom[0] > charm[0] > light[0] and bottom[0] > bottom[1]
    print("\n" + json.dumps({"jets": len(jets), "tails": tails, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
