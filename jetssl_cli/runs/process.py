"""One of the processes that the first one of a run has started: ``python -m``, config on input.

It ends when its input does, which is when the first process ends, however that may be.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import takewhile

from jetssl_cli.config import Layer, load
from jetssl_cli.errors import JetSSLError
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.launch import END_OF_CONFIG
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.safeyaml import parse_yaml

SOURCE = "the first process"


def main() -> None:
    """Take part in the run whose config comes first on the input."""
    lines = list(takewhile(lambda line: line != END_OF_CONFIG, sys.stdin))
    threading.Thread(target=_end_with_the_first, daemon=True, name="input").start()
    settings = parse_yaml("".join(lines), SOURCE)
    layers = [Layer(SOURCE, settings)]
    try:
        if settings["command"] == "pretrain":
            pretrain(load(PretrainConfig, layers))
        else:
            finetune(load(FinetuneConfig, layers))
    except JetSSLError as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(err.code)


def _end_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
