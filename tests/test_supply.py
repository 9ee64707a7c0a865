"""What the project is made of: pinned versions, their hashes, images, workflows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

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


Step = tuple[str, str]


def lines_of(name: str) -> list[str]:
    """The lines of a file but comments and empty ones; what a backslash continues is one line."""
    joined = re.sub(r"\\\n\s*", " ", (ROOT / name).read_text())
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def stages() -> list[list[Step]]:
    """The Dockerfile: what stands before the first FROM, and each stage; (word, what follows)."""
    found: list[list[Step]] = [[]]
    for line in lines_of("Dockerfile"):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def sections() -> dict[str, list[str]]:
    """The recipe of apptainer: name of a section -> its lines; the header has no name."""
    found: dict[str, list[str]] = {"": []}
    for line in lines_of("apptainer.def"):
        if line.startswith("%"):
            found[line[1:]] = []
        else:
            found[list(found)[-1]].append(line.strip())
    return found


def all_of(word: str, steps: list[Step]) -> list[str]:
    return [rest for each, rest in steps if each == word]


def copied() -> list[tuple[Path, str]]:
    """What the image is made of: a path in the repository, and where it lies in the builder."""
    pairs = []
    for words in map(str.split, all_of("COPY", stages()[1])):
        for source in words[:-1]:
            target = words[-1] + source if words[-1].endswith("/") else words[-1]
            pairs.append((ROOT / source, target))
    return pairs


def test_the_image_has_what_it_copies_and_declares_what_it_uses() -> None:
    head, *rest = stages()
    for source, _ in copied():
        assert source.exists()
    known = {argument.partition("=")[0] for argument in all_of("ARG", head)}
    for steps in rest:
        (image,) = all_of("FROM", steps)
        assert set(re.findall(r"\$\{(\w+)", image)) <= known
        arguments = {argument.partition("=")[0] for argument in all_of("ARG", steps)}
        for text in all_of("RUN", steps):
            assert set(re.findall(r"\$\{(\w+)", text)) <= arguments, text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv"} <= set(ignored)


def test_the_image_is_what_was_installed_and_runs_as_an_ordinary_user() -> None:
    _, builder, final = stages()
    (name,) = [image.partition(" AS ")[2] for image in all_of("FROM", builder)]
    assert all_of("COPY", final) == [f"--from={name} /opt/jetssl /opt/jetssl"]
    (made,) = [text for text in all_of("RUN", final) if "useradd" in text]
    assert not [text for text in all_of("RUN", final) if "pip" in text]
    user = re.search(r"--uid (\d+)", made)
    assert user is not None
    assert all_of("USER", final) == [user[1]]
    assert user[1] != "0"
    words = [word for word, _ in final]
    assert max(i for i, word in enumerate(words) if word in ("RUN", "COPY")) < words.index("USER")
    assert all_of("ENTRYPOINT", final) == ['["jetssl"]']


def test_apptainer_installs_the_same_as_docker() -> None:
    head, builder, final = stages()
    recipe = sections()
    arguments = dict(line.split("=", 1) for line in recipe["arguments"])
    of_docker = dict(text.split("=", 1) for text in [*all_of("ARG", head), *all_of("ARG", builder)])
    del of_docker["BUILDER"]  # there is one image only
    assert arguments == of_docker
    assert recipe[""] == ["Bootstrap: docker", "From: {{ BASE }}"]
    assert sorted(line.split() for line in recipe["files"]) == sorted(
        [str(source.relative_to(ROOT)), target] for source, target in copied()
    )
    given = [f'{name}="{{{{ {name} }}}}"' for name in arguments if name != "BASE"]
    last = "rm -rf /src /var/lib/apt/lists/*"
    assert recipe["post"] == ["set -e", *given, *all_of("RUN", builder), last]
    path = all_of("ENV", final)[0].split()[0]
    assert recipe["environment"] == [f"export {path}"]
    assert recipe["runscript"] == ['exec jetssl "$@"']


SHIPPED = """
from jetssl_cli.config import Layer, shipped
from jetssl_cli.runs.pretrain import load_config

options = Layer("test", {"out": "run", "data": {"train": "a.h5", "val": "b.h5"}})
assert load_config("ssfm", "tiny", options).encoder.width == 128
assert (shipped("workflow") / "Snakefile").is_file()
assert (shipped("workflow") / "profiles" / "slurm" / "config.yaml").is_file()
"""


@pytest.mark.slow
def test_what_the_image_installs_works_without_the_checkout(tmp_path: Path, samples: Path) -> None:
    """The steps of the builder, in a folder instead of an image: the built wheel, all versions."""
    places = {"/src": f"{tmp_path}/src", "/opt/jetssl": f"{tmp_path}/opt"}
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict(text.split("=", 1) for text in all_of("ARG", stages()[1]))
    environment["PIP_NO_COMPILE"] = "0"  # so pip is told --no-compile: half of the time

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-1000:]} {done.stderr[-2000:]}"
        return done.stdout

    for source, target in copied():
        place = Path(target.replace("/src", places["/src"]))
        place.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
    for text in all_of("RUN", stages()[1]):
        run("sh", "-ec", re.sub("|".join(places), lambda found: places[found[0]], text))
    shutil.rmtree(tmp_path / "src")
    command = f"{tmp_path}/opt/bin/jetssl"
    assert "pretrain" in run(command, "--help")
    shutil.copy(samples / "jetclass" / "val" / "HToBB_120.root", tmp_path)
    run(command, "convert", "HToBB_120.root", "--recipe", "jetclass", "--out", "converted")
    assert (tmp_path / "converted" / "HToBB_120.h5").stat().st_size
    run(f"{tmp_path}/opt/bin/python", "-c", SHIPPED)


def workflow(name: str) -> dict[Any, Any]:
    """A workflow as parsed; YAML 1.1 takes the word ``on`` for true."""
    text = (ROOT / ".github" / "workflows" / name).read_text()
    parsed: dict[Any, Any] = yaml.safe_load(text)
    return {("on" if key is True else key): value for key, value in parsed.items()}


WORKFLOWS = sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_read_and_keeps_no_secret(name: str) -> None:
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job.get("permissions", {}) in ({}, {"id-token": "write"})
        assert "uses" in job or "timeout-minutes" in job
        for step in job.get("steps", []):
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@(v\d+|release/v\d+)", step["uses"]), step["uses"]
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
    text = (ROOT / ".github" / "workflows" / name).read_text()
    assert not re.search(r"secrets\.|password", text)


def scripts(job: dict[str, Any]) -> list[str]:
    """What a job executes."""
    return [step["run"] for step in job["steps"] if "run" in step]


def test_changes_are_checked_as_here() -> None:
    found = workflow("ci.yml")
    assert {"push", "pull_request"} <= set(found["on"])
    jobs = found["jobs"]
    assert scripts(jobs["checks"]) == [".ci/run"]
    (docs,) = scripts(jobs["docs"])
    plain = subprocess.run(
        ["make", "--dry-run", docs.split()[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "mkdocs build --strict" in plain.stdout
    assert scripts(jobs["image"])[0] == "docker build --tag jetssl ."


def test_a_tag_publishes_what_has_passed_the_checks() -> None:
    found = workflow("release.yml")
    assert found["on"] == {"push": {"tags": ["v*"]}}
    jobs = found["jobs"]
    assert jobs["checks"]["uses"] == "./.github/workflows/ci.yml"
    assert jobs["build"]["needs"] == "checks"
    assert "python -m build" in scripts(jobs["build"])
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    used = [step.get("uses", "") for step in jobs["publish"]["steps"]]
    assert used[-1].startswith("pypa/gh-action-pypi-publish@")
    assert not scripts(jobs["publish"])
