"""SIGKILL at random moments of a short training, each followed by --resume.

    python benchmarks/kills.py [--kills 100] [--per-run 1] [--steps 30] [--keep DIR]

A tiny network is trained on the committed sample, with a snapshot after every third step. Every run
is killed ``per-run`` times, at moments drawn uniformly over the time that a whole run takes, and
each time goes on with what is in its folder. In the end its weights, byte for byte, and its
measurements have to be those of the run that nothing has stopped. The processes are forked from one
that has everything imported, so that the moments fall into the run. Prints a Markdown table and one
line of JSON; exit code 1 where a run differs, which is then moved to ``keep`` with what it said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import jetssl_cli.runs.module  # noqa: F401  (imported once, not in every process)
from jetssl_cli.config import Layer
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.merge import MergeConfig, merge
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.runs.pretrain import PretrainConfig, load_config, pretrain

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "jetclass"
ENCODER = {"width": 16, "depth": 2, "heads": 2, "embedding_width": 8, "context_width": 8}
CLOCK = ("time", "train/jets_per_second")


def prepare(folder: Path) -> None:
    """The sample as data files."""
    cfg = ConvertConfig(
        sources=(SAMPLE,), recipe=load_recipe("jetclass"), out=folder / "each", jobs=1
    )
    convert(cfg)
    for split in ("train", "val"):
        merge(MergeConfig(sources=(folder / "each" / split,), out=folder / f"{split}.h5"))


def config(folder: Path, name: str, steps: int) -> PretrainConfig:
    """A short training."""
    data = {"train": str(folder / "train.h5"), "val": str(folder / "val.h5")}
    settings = {
        "out": str(folder / name),
        "resume": True,
        "tracking": False,
        "encoder": ENCODER,
        "data": data | {"batch_size": 16, "max_constituents": 12, "num_val_jets": 24},
        "train": {"steps": steps, "val_every": 10, "log_every": 1, "precision": 32},
        "checkpoint": {"every_steps": 3},
    }
    return load_config("ssfm", "tiny", Layer("the benchmark", settings))


def begin(cfg: PretrainConfig) -> int:
    """Train in a process of its own; its number."""
    process = os.fork()
    if process:
        return process
    try:
        with cfg.out.with_suffix(".log").open("a") as said:
            os.dup2(said.fileno(), 2)
        pretrain(cfg)
        os._exit(0)
    except Exception as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def ended(process: int, seconds: float) -> bool:
    """Whether a process comes to its end in this time; else it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def result(run: Path) -> tuple[list[bytes], list[dict[str, float]]]:
    """Weights and measurements; nothing where the run has not come to its end."""
    files = [run / f"{name}.safetensors" for name in ("model", "backbone")]
    if not all(path.exists() for path in files):
        return [], []
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]
    return [path.read_bytes() for path in files], rows


def keep(run: Path, folder: Path) -> None:
    """Move a run, and what its processes said."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (run, run.with_suffix(".log")):
        shutil.move(path, folder / path.name)


def main() -> int:
    """Kill, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--keep", type=Path, default=Path("build/kills"), help="folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    kills = begun = runs = equal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        if not ended(begin(config(folder, "first", args.steps)), 3600):  # fits the scaling, too
            return 1
        start = time.monotonic()
        ended(begin(config(folder, "whole", args.steps)), 3600)
        seconds = time.monotonic() - start
        wanted = result(folder / "whole")
        while kills < args.kills:
            cfg, here = config(folder, f"run{runs}", args.steps), 0
            while here < args.per_run and not ended(begin(cfg), rng.uniform(0, seconds)):
                here += 1
                begun += bool(list(cfg.out.glob("snapshots/*.safetensors")))
            if here == 0:
                continue
            ended(begin(cfg), 3600)
            found = result(cfg.out)
            runs, kills, equal = runs + 1, kills + here, equal + (found == wanted)
            if found != wanted:
                keep(cfg.out, args.keep)
                what = ("weights", "measurements")
                differ = [w for w, a, b in zip(what, found, wanted, strict=True) if a != b]
                print(f"{args.keep / cfg.out.name}: differs: {differ}", file=sys.stderr)
            print(f"{kills} kills, {equal} of {runs} runs equal", file=sys.stderr)
    holds = equal == runs
    print("| kills | of these behind a snapshot | runs | equal to the run that nothing stopped |")
    print("|---:|---:|---:|---:|")
    print(f"| {kills} | {begun} | {runs} | {equal} |")
    told = {"kills": kills, "behind_a_snapshot": begun, "runs": runs, "equal": equal}
    print(json.dumps(told | {"seconds_of_a_run": seconds, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
