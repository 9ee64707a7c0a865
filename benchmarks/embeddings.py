"""A finetuning with a frozen backbone: jets encoded once against jets encoded in every epoch.

    python benchmarks/embeddings.py RUN TRAIN.h5 VAL.h5 [--jets 2000] [--epochs 5]

RUN is the folder of a pretraining. Each of the two is run three times, in turns, validating after
every epoch. Prints a Markdown table and one line of JSON; exit code 1 where the validation losses
differ by more than a hundredth, or encoding once is not twice as fast.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from jetssl_cli.config import Layer
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import load_config, mode

BATCH = 100
BAR, TOLERANCE = 2.0, 0.01
REPEATS = 3


def run(args: argparse.Namespace, out: Path, cached: bool) -> tuple[float, list[float]]:
    """Seconds of a finetuning, and its validation losses."""
    each = args.jets // BATCH
    data = {"train": [str(args.train)], "val": [str(args.val)], "num_val_jets": args.jets // 4}
    data |= {"subset": args.jets, "in_memory": True, "batch_size": BATCH}
    settings = {
        "backbone": str(args.run),
        "out": str(out),
        "data": data,
        "train": {"steps": each * args.epochs, "val_every": each},
        "cache_embeddings": cached,
        "tracking": False,
        **mode(frozen=True),
    }
    cfg = load_config(args.run, Layer("the benchmark", settings))
    start = time.perf_counter()
    finetune(cfg)
    seconds = time.perf_counter() - start
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    return seconds, [row["val/loss"] for row in rows if "val/loss" in row]


def main() -> int:
    """Print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("run", "train", "val"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--jets", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            for cached in (False, True):
                found = run(args, Path(folder) / f"{repeat}{cached}", cached)
                seconds[cached].append(found[0])
                losses[cached] = found[1]
    plain, once = (median(seconds[cached]) for cached in (False, True))
    apart = max(abs(a - b) for a, b in zip(losses[False], losses[True], strict=True))
    ratio = plain / once
    print("| encoded | median s | largest difference of a validation loss |")
    print("|---|---:|---:|")
    print(f"| in every epoch | {plain:.1f} | |")
    print(f"| once | {once:.1f} | {apart:.1e} |")
    print(f"\n{ratio:.2f} times as fast (bar {BAR:g})")
    print(json.dumps({"plain": plain, "once": once, "ratio": ratio, "apart": apart}))
    return 0 if ratio >= BAR and apart <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
