"""The command ``jetssl`` as the tests of the pages type it: the same words with smaller numbers.

What is changed, and nothing else:

- the number behind an option of ``SMALLER``;
- how long a training is (--steps, --jets, --max-time): two steps;
- behind a training stand the settings of ``SETTINGS``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

SMALLER = {
    "simulate": {"--num-jets": "4", "--jobs": "1"},
    "convert": {"--jobs": "1"},
    "pretrain": {"--size": "tiny"},
    "finetune": {"--num-jets": "20", "--num-signal": "10", "--unfreeze-at": "1"},
}
LENGTHS = ("--steps", "--jets", "--max-time")
SETTINGS = ("data.batch_size=10", "data.num_val_jets=40", "tracking=false")


def shortened(words: Sequence[str]) -> list[str]:
    """The words of a command, the name of the program left out."""
    smaller = SMALLER.get(words[0], {}) if words else {}
    trains = bool(words) and words[0] in ("pretrain", "finetune")
    found: list[str] = []
    left = iter(words)
    for word in left:
        if trains and word in LENGTHS:
            next(left)
        elif word in smaller:
            next(left)
            found += [word, smaller[word]]
        else:
            found.append(word)
    return [*found, "--steps", "2", *SETTINGS] if trains else found


if __name__ == "__main__":
    from jetssl_cli.cli.main import main

    sys.argv = ["jetssl", *shortened(sys.argv[1:])]
    main()
