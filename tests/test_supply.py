"""What the project is made of: pinned versions, their hashes, the image."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pinned(text: str) -> dict[str, str]:
    """Name -> version of the lines ``name==version``."""
    found = re.findall(r"^([\w.-]+)==([\w.+!]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_every_pinned_version_but_that_of_torch_has_its_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    wanted, locked = pinned((ROOT / "constraints.txt").read_text()), pinned(lock)
    assert wanted.pop("torch")
    assert {name: locked.get(name) for name in wanted} == wanted, "make lock"
    entries = lock.replace("\\\n", " ").strip().split("\n")
    assert len(entries) == len(locked) >= 100
    for entry in entries:
        assert HASH.search(entry), entry


def test_the_tools_of_the_supply_chain_are_pinned() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert [tool.split("==")[0] for tool in groups["audit"]] == ["cyclonedx-bom", "pip-audit", "uv"]


def test_the_image_runs_as_an_ordinary_user_and_has_what_it_copies() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").split("\n")
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    words = [word for word, _ in steps]
    said = dict(steps)  # the last of each
    (made,) = [text for word, text in steps if word == "RUN" and "useradd" in text]
    user = re.search(r"--uid (\d+)", made)
    assert user is not None
    assert said["USER"] == user[1] != "0"
    assert max(i for i, word in enumerate(words) if word in ("RUN", "COPY")) < words.index("USER")
    assert said["ENTRYPOINT"] == '["jetssl"]'
    for word, text in steps:
        if word == "COPY":
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv"} <= set(ignored)
