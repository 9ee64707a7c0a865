"""Mistakes a user can make and mend: the command prints them in one line, and exits with 2."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

MOST = 80
"""Characters of a value that an error message shows."""


class JetSSLError(Exception):
    """Base of every error that is reported without a traceback."""

    code = 2
    """Exit code of the command."""

    def __str__(self) -> str:
        """The message, in which nothing that a file says can command a terminal."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(JetSSLError):
    """A preset, an override or an option does not describe a valid run."""


class DataError(JetSSLError):
    """A file or its content is not what it should be."""


class RunError(JetSSLError):
    """A run cannot start, or had to stop."""


class OutOfMemoryError(JetSSLError):
    """The memory of the machine, or of its GPU, did not suffice."""

    code = 3


SHORTAGE = (
    "out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "killed by signal: Killed",
)  # fmt: skip
"""What PyTorch says where memory is wanting: of a GPU, of a CPU, of a reading process."""
OF_RUST = re.compile(r"I/O error: (.+?) \(os error \d+\)")
"""The reason in what safetensors says where it cannot write."""


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn the error of an allocation that fails into one clear line.

    Raises:
        OutOfMemoryError: an allocation inside the block failed; with the advice.
    """
    try:
        yield
    except JetSSLError:
        raise
    except (MemoryError, RuntimeError, OSError) as err:
        told = str(err)
        lacking = isinstance(err, MemoryError) or any(words in told for words in SHORTAGE)
        if not lacking and getattr(err, "errno", None) != errno.ENOMEM:
            raise
        cause = told.partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2][:200]
        raise OutOfMemoryError(f"out of memory ({cause or 'no reason given'}): {advice}") from None


def printable(text: str) -> str:
    """The text in one line: what cannot be printed, line ends among it, is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(err: BaseException) -> str:
    """What an error of a library says, in one line; of one of the system the reason alone.

    The message that it goes into names the file, which may not be the one that the error came of.
    """
    text: object = err.args[0] if isinstance(err, KeyError) and err.args else err
    if isinstance(err, OSError) and err.strerror:
        text = err.strerror
    elif found := OF_RUST.search(str(err)):
        text = found[1]
    return " ".join(str(text).split()) or type(err).__name__


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that a name means: in other letters, begun, or misspelled; None if there is none.

    A case counts only where it decides.
    """
    known = list(choices)
    low = {choice.lower(): choice for choice in known}
    wanted = name[:MOST].lower()
    begun = [choice for text, choice in low.items() if wanted and text.startswith(wanted)]
    if wanted in low:
        return low[wanted]
    if len(begun) == 1:
        return begun[0]
    if near := get_close_matches(name[:MOST], known, n=1):
        return near[0]
    return next((low[text] for text in get_close_matches(wanted, low, n=1)), None)


def suggest(name: str, choices: Iterable[str], shown: int = 12) -> str:
    """Say which valid choice is nearest to ``name``, or else which choices there are."""
    valid = [printable(str(choice)) for choice in choices]
    if near := nearest(name, valid):
        return f"did you mean {near!r}?"
    more = f", ... ({len(valid)} in all)" if len(valid) > shown else ""
    return f"valid: {', '.join(valid[:shown])}{more}"
