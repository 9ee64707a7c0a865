"""Fuzz one target for some minutes; what is found is written into a folder, and the exit code is 1.

    python tests/fuzz/run.py jagged --minutes 10
    python tests/fuzz/run.py recipe --minutes 10 --atheris    # guided by coverage; needs atheris

An input is a valid one with a few changes, or one whose message was new with a few more. Each is
executed in a process of its own, so that a crash, a hang and memory are seen as well.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

KEPT = 500
"""Inputs with messages of their own that are changed further."""


def fuzz(name: str, *, seconds: float, executions: int, seed: int, found: Path) -> int:
    """Fuzz, print the figures, and return how many kinds of findings there are."""
    from fuzz.child import Child
    from fuzz.targets import TARGETS, seeds

    target = TARGETS[name]
    rng = Random(seed)
    first = seeds(name)
    pool = [*first]
    messages: set[str] = set()
    findings: dict[str, int] = {}
    valid = done = 0
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Child(name, Path(folder), target.file) as child,
    ):
        while done < executions and time.monotonic() - begin < seconds:
            content = rng.choice(pool if rng.random() < 0.5 else first)
            content = target.mutate(content, rng, valid=content in first)
            answer = child.run(content)
            done += 1
            valid += answer.outcome.startswith("valid")
            if answer.finding:
                kind = answer.finding.partition(": ")[0]
                if kind not in findings:
                    _keep(found, name, content, answer.finding)
                findings[kind] = findings.get(kind, 0) + 1
            elif (kind := _kind(answer.outcome)) not in messages and len(messages) < KEPT:
                messages.add(kind)
                pool.append(content)
    minutes = (time.monotonic() - begin) / 60
    print(
        f"{name}: {done:,} executions in {minutes:.1f} minutes, {valid:,} valid, "
        f"{len(messages)} messages, {sum(findings.values())} findings of {len(findings)} kinds"
    )
    for kind, number in sorted(findings.items(), key=lambda item: -item[1]):
        print(f"  {number} x {kind}")
    return len(findings)


def guided(name: str, *, seconds: float, seed: int, found: Path) -> None:
    """The same in this process, guided by coverage; ends at the first finding."""
    import atheris

    with atheris.instrument_imports(include=["jetssl_cli", "yaml"]):
        from fuzz.targets import TARGETS, seeds
    target = TARGETS[name]
    folder = Path(tempfile.mkdtemp())
    valid_ones = set(seeds(name))
    for index, content in enumerate(seeds(name)):
        (folder / str(index)).write_bytes(content)
    path = Path(tempfile.mkdtemp()) / target.file

    def execute(content: bytes) -> None:
        path.write_bytes(content)
        target.run(path)

    def change(content: bytes, limit: int, number: int) -> bytes:
        content = bytes(content)
        return target.mutate(content, Random(number), valid=content in valid_ones)[:limit]

    found.mkdir(parents=True, exist_ok=True)
    words = [
        sys.argv[0], str(folder), f"-max_total_time={seconds:.0f}", f"-seed={seed}", "-timeout=20",
        "-rss_limit_mb=4096", "-max_len=65536", f"-artifact_prefix={found}/{name}-",
    ]  # fmt: skip
    atheris.Setup(words, execute, custom_mutator=change)
    atheris.Fuzz()


def _kind(text: str) -> str:
    """A message without its numbers, names and values."""
    return re.sub(r"\d+|'[^']*'|\"[^\"]*\"|\[.*\]|= .*?:", "_", text)[:120]


def _keep(found: Path, name: str, content: bytes, finding: str) -> None:
    found.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    (found / stem).write_bytes(content)
    (found / f"{stem}.txt").write_text(finding + "\n", encoding="utf-8")
    print(f"{found / stem}: {finding}", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Fuzz one reader of JetSSL.")
    parser.add_argument("target", help="see targets.py")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--executions", type=int, default=sys.maxsize, help="end after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"), help="folder")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, one process")
    words = parser.parse_args()
    if words.atheris:
        guided(words.target, seconds=60 * words.minutes, seed=words.seed, found=words.found)
        return
    kinds = fuzz(
        words.target,
        seconds=60 * words.minutes,
        executions=words.executions,
        seed=words.seed,
        found=words.found,
    )
    sys.exit(1 if kinds else 0)


if __name__ == "__main__":
    main()
