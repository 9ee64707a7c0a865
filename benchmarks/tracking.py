"""What a slow or absent tracking server costs a training.

    python benchmarks/tracking.py [--steps 300] [--repeats 5] [--delay 5]

The same short training of a tiny network is run in turns: not recorded; recorded by a server on
this machine that waits ``delay`` seconds before each answer; and with no server there. Every step
is logged, ten times as often as usual. Counted is the time between the first and the last
measurement.
Prints a Markdown table and one line of JSON; exit code 1 where the median of the ratios is above
1.05.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import mlflow  # noqa: F401  (so that no training pays for it)
import torch
from kills import config, prepare

from jetssl_cli.runs import tracking
from jetssl_cli.runs.pretrain import pretrain

BAR = 1.05
ABSENT = "http://127.0.0.1:9"


def server(delay: float, artifacts: Path) -> ThreadingHTTPServer:
    """A server that answers as MLflow does, as far as it is asked, after so many seconds."""
    run = {"info": {"run_id": "0" * 32, "artifact_uri": artifacts.as_uri()}}
    answers = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "jetssl"}},
        "runs/create": {"run": run},
        "runs/get": {"run": run},
    }

    class Slow(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(delay)
            found = (said for path, said in answers.items() if path in self.path)
            content = json.dumps(next(found, {})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


def seconds(folder: Path, name: str, steps: int, uri: str | None) -> float:
    """Of a training, from its first to its last measurement."""
    os.environ["MLFLOW_TRACKING_URI"] = uri or ABSENT
    cfg = config(folder, name, steps).model_copy(update={"tracking": uri is not None})
    rows = (pretrain(cfg) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(rows[-1])["time"] - json.loads(rows[0])["time"])


def main() -> int:
    """Print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--delay", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tracking.SECONDS_TO_FINISH = 0.0  # the end is not what is counted
    with tempfile.TemporaryDirectory() as folder:
        slow = server(args.delay, Path(folder))
        places = {
            "not recorded": None,
            "slow server": f"http://127.0.0.1:{slow.server_address[1]}",
            "no server": ABSENT,
        }
        found: dict[str, list[float]] = {how: [] for how in places}
        prepare(Path(folder))
        seconds(Path(folder), "first", 10, None)
        for repeat in range(args.repeats):
            for number, (how, uri) in enumerate(places.items()):
                name = f"{repeat}-{number}"
                found[how].append(seconds(Path(folder), name, args.steps, uri))
    plain = found["not recorded"]
    ratios = {
        how: median(a / b for a, b in zip(of, plain, strict=True)) for how, of in found.items()
    }
    print("| server | median s | median ratio |")
    print("|---|---:|---:|")
    for how, times in found.items():
        print(f"| {how} | {median(times):.2f} | {ratios[how]:.3f} |")
    holds = max(ratios.values()) <= BAR
    print(json.dumps({"seconds": found, "ratios": ratios, "delay": args.delay, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
