"""What the documentation says is done as it stands."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import forking
import h5py
import numpy as np
import pytest
import uproot
import yaml
from safetensors import safe_open
from shortened import SETTINGS, shortened

from jetssl_cli.config import Layer, load
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.facts import written
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.padded import ARRAYS
from jetssl_cli.data.recipe import Column, Recipe, load_recipe, schema_of
from jetssl_cli.physics import FORMULAS, PARTICLE_CLASSES
from jetssl_cli.runs.checkpoint import BACKBONE, CONFIG, METRICS, MODEL, SCHEMA
from jetssl_cli.runs.diverged import FOLDER as DIVERGED
from jetssl_cli.runs.lock import NAME as LOCK
from jetssl_cli.runs.snapshot import FACTS, Facts
from jetssl_cli.runs.snapshot import FOLDER as SNAPSHOTS
from jetssl_cli.runs.sync import RUN_ID, SENT, STATUS
from jetssl_cli.scores.scorefile import read_scores

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SHELL = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```sh\n(?P<text>.*?)^```$", re.M | re.S
)
LANGUAGES = {"", "sh", "python", "yaml", "cpp", "diff"}
"""Of blocks; those without any are what a command prints, and layouts."""


def blocks(page: str, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(PAGES[page].read_text()) if name == language]


def script(page: str) -> str:
    """What a page types, in order, but the blocks that say why they are not run."""
    found = SHELL.finditer(PAGES[page].read_text())
    return "".join(block["text"] for block in found if block["why"] is None)


TYPED = [page for page in PAGES if script(page)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_run_or_the_page_says_why_not(page: str) -> None:
    text = PAGES[page].read_text()
    assert {name for name, _ in FENCE.findall(text)} <= LANGUAGES
    assert text.count("```") == 2 * len(FENCE.findall(text)), "a block that no test sees"
    assert len(list(SHELL.finditer(text))) == len(blocks(page, "sh"))
    marked = [block for block in SHELL.finditer(text) if block["why"]]
    assert text.count("<!-- not run") == len(marked), "a mark without a block right below it"
    for block in blocks(page, ""):
        assert not re.search(r"^(\$ |jetssl |\.venv/bin/|make )", block, re.M), block


def test_only_the_numbers_that_are_named_get_smaller() -> None:
    words = shlex.split("finetune --unfreeze-at 500 --max-time 24h --frozen optim.lr=1e-3")
    kept = shlex.split("finetune --unfreeze-at 1 --frozen optim.lr=1e-3 --steps 2")
    assert shortened(words) == [*kept, *SETTINGS]
    assert shortened(["convert", "a", "--jobs", "8"]) == ["convert", "a", "--jobs", "1"]
    assert shortened(["merge", "a", "--num-jets", "8"]) == ["merge", "a", "--num-jets", "8"]
    short = ["simulate", "btag", "--num-jets", "4"]
    assert shortened(["simulate", "btag", "--num-jets", "1000"]) == short
    assert shortened([]) == []


@dataclass(frozen=True)
class Ran:
    """A page whose commands were typed."""

    folder: Path
    printed: str


FORKED = "forked"
PRESUPPOSED = {
    "README.md": ("JetClass",),
    "quickstart.md": ("demo",),
    "jetclass.md": ("JetClass",),
    "simulation.md": ("demo",),
    "finetune.md": ("train.h5", "val.h5", "test.h5", "runs/ssfm"),
    "training.md": ("train.h5", "val.h5"),
    "tasks.md": ("demo", "jetclass"),
    "method.md": ("train.h5", "val.h5", "test.h5"),
    "reliability.md": ("train.h5", "val.h5", "test.h5", "runs", "scores"),
    "export.md": ("test.h5", "runs", "HToBB_100.root"),
    "evaluation.md": ("scores", "weaver"),
}
"""The files and folders that the text of a page takes to be there, which it does not make itself.

Real ones, but small: the jets of ``tests/samples``, and runs of two steps on them. The files of
recipes.md are those of ``files_of_ones_own``."""


class Bench:
    """Types scripts, in folders of their own, with a ``jetssl`` that makes numbers smaller."""

    def __init__(self, folder: Path, own: Path, commands: Path) -> None:
        """Pages are typed in ``folder``, once by all processes that test together; ``own`` is of
        this process."""
        self.folder, self.own = folder, own
        self.folder.mkdir(exist_ok=True)
        self.command(FORKED, forking.client(commands, "shortened"), ROOT)

    def command(self, name: str, words: list[str], tree: Path) -> None:
        """Let ``jetssl`` be these words, with the package of ``tree``."""
        text = f'#!/bin/sh\nPYTHONPATH="{tree}" exec {shlex.join(words)} "$@"\n'
        command = self.own / name / "jetssl"
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)

    def type(self, text: str, folder: Path, name: str = FORKED) -> str:
        """What a script of the shell prints; an error of any of its commands is one of the test."""
        path = [str(self.own / name), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {
            **os.environ,
            "PATH": ":".join(path),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "COLUMNS": "120",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Hold a folder, so that one process makes what is in it: whether it has to be made."""
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, commands: Path) -> Bench:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Bench(shared / "pages", tmp_path_factory.mktemp("bench"), commands)


RUNS = """
data="--train train.h5 --val val.h5"
jetssl pretrain --method ssfm --size tiny $data --out runs/ssfm
jetssl tokenize train.h5 --clusters 16
for mode in frozen random; do
    jetssl finetune --backbone runs/ssfm --$mode $data --out runs/$mode
    jetssl export runs/$mode --data test.h5 --out scores/$mode.h5
done
mkdir demo jetclass weaver
cp -r *.h5 runs/* scores demo
cp *.h5 jetclass
"""


@pytest.fixture(scope="session")
def prepared(jagged: Path, samples: Path, bench: Bench) -> Path:
    """All that pages presuppose but files of b-tagging jets."""
    folder = bench.folder / "prepared"
    with alone(folder) as due:
        if due:
            prepare(folder, jagged, samples, bench)
    return folder


def prepare(folder: Path, jagged: Path, samples: Path, bench: Bench) -> None:
    """Write it."""
    folder.mkdir()
    for name, source in {"train_100M": "train", "val_5M": "val", "test_20M": "test"}.items():
        shutil.copytree(samples / "jetclass" / source, folder / "JetClass" / name)
        shutil.copy(jagged / f"{source}.h5", folder)
    shutil.copy(samples / "jetclass" / "test" / "HToBB_100.root", folder)
    bench.type(RUNS, folder)
    found = read_scores(folder / "scores" / "random.h5")
    named = zip(found.classes, found.scores.T, strict=True)
    columns = {f"score_label_{name}": column for name, column in named}
    flags = (found.labels == np.arange(len(found.classes))[:, None]).astype(np.int32)
    columns |= {f"label_{name}": flag for name, flag in zip(found.classes, flags, strict=True)}
    with uproot.recreate(folder / "weaver" / "pred.root") as file:
        file.mktree("Events", {name: column.dtype for name, column in columns.items()})
        file["Events"].extend(columns)


@pytest.fixture(scope="session")
def after(prepared: Path, bench: Bench, request: pytest.FixtureRequest) -> Callable[[str], Ran]:
    """What is there after the commands of a page, which are typed once, and what they printed."""

    def type_page(page: str) -> Ran:
        folder, printed = bench.folder / page, bench.folder / f"{page}.txt"
        with alone(folder) as due:
            if due:
                printed.write_text(typed(page, folder))
        return Ran(folder, printed.read_text())

    def typed(page: str, folder: Path) -> str:
        command = FORKED
        if page == "recipes.md":
            files_of_ones_own(request.getfixturevalue("shared_data"), folder)
        if page == "method.md":
            command = "changed"
            words = [sys.executable, str(Path(__file__).with_name("shortened.py"))]
            bench.command(command, words, changed(bench.own / "tree", blocks(page, "diff")))
        for name in PRESUPPOSED.get(page, ()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (prepared / name).is_dir() else shutil.copy
            copy(prepared / name, folder / name)
        folder.mkdir(exist_ok=True)
        return bench.type(script(page), folder, command)

    return type_page


def files_of_ones_own(shared_data: Path, folder: Path) -> None:
    """The files of recipes.md: b-tagging jets, and the recipe of the page."""
    folder.mkdir()
    sources = {"train": "valid", "val": "test", "test": "test", "my": "test"}
    for name, source in sources.items():
        shutil.copy(shared_data / f"btag_reduced_{source}.root", folder / f"{name}.root")
    (folder / "mine.yaml").write_text("".join(blocks("recipes.md", "yaml")))


def changed(folder: Path, diffs: list[str]) -> Path:
    """A copy of the package with changes."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("jetssl_cli", "configs", "data_recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for diff in diffs:
        subprocess.run(["patch", "--strip=1"], cwd=folder, input=diff, text=True, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", TYPED)
def test_the_commands_of_a_page_run_in_their_order(page: str, after: Callable[[str], Ran]) -> None:
    after(page)


def test_the_recipe_of_the_page_converts_the_file_of_the_page(
    shared_data: Path, tmp_path: Path
) -> None:
    (text,) = blocks("recipes.md", "yaml")
    recipe = load(Recipe, [Layer("mine.yaml", yaml.safe_load(text))])
    source = shared_data / "btag_reduced_valid.root"
    report = convert(ConvertConfig(sources=(source,), recipe=recipe, out=tmp_path))
    assert set(report.classes) == {"light", "charm", "bottom"}
    with JaggedFile(report.files[0].output) as file:
        assert [feature.name for feature in file.schema.constituents] == [
            "pt",
            "deta",
            "dphi",
            "d0",
        ]
        assert file.read().jets[:, 0].min() >= 20


def test_the_page_lists_every_formula_and_setting() -> None:
    page = (DOCS / "recipes.md").read_text()
    for name in (*FORMULAS, *Recipe.model_fields, *Column.model_fields):
        assert f"`{name}" in page or f".{name}`" in page or f"`{name}:" in page, name


def test_the_page_tells_what_a_padded_file_has() -> None:
    rows = {row[0]: row for row in tables("recipes.md", "Padded HDF5 files")["array"]}
    schema = schema_of(load_recipe("jetclass"))
    assert tuple(rows) == ARRAYS
    assert ", ".join(column.name for column in schema.constituents) in rows["csts"][3]
    assert ", ".join(column.name for column in schema.jets) in rows["jets"][3]
    named = (f"{number} {name}" for number, name in enumerate(PARTICLE_CLASSES))
    assert ", ".join(named) in rows["csts_id"][3]


@pytest.mark.slow
def test_a_file_of_ones_own_comes_to_a_score_table(after: Callable[[str], Ran]) -> None:
    ran = after("recipes.md")
    assert re.search(r"^tagger +1,017 ", ran.printed, re.M)
    assert "data:image/svg+xml" in (ran.folder / "report.html").read_text()


def tables(page: str, section: str) -> dict[str, list[list[str]]]:
    """The tables of a section: first word of the header -> rows, as they are without backticks."""
    text = PAGES[page].read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    found: dict[str, list[list[str]]] = {}
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        head, _, *rows = [[cell.strip().strip("`") for cell in line] for line in lines]
        found.setdefault(head[0], []).extend(rows)
    return found


def axes_fit(shape: str, actual: tuple[int, ...], known: dict[str, int]) -> bool:
    """Whether an array has the shape that a page says; each letter is one number in a file."""
    words = [word.strip() for word in shape.strip("()").split(",") if word.strip()]
    for word, number in zip(words, actual, strict=False):
        letter, _, more = word.partition(" + ")
        if letter.isdigit():
            known[letter] = int(letter)
        if known.setdefault(letter, number - int(more or 0)) != number - int(more or 0):
            return False
    return len(words) == len(actual)


def check_listed(section: str, *paths: Path, attributes_of: str | None = None) -> None:
    """Hold the tables of a section against files, which together have all that it lists."""
    page = tables("file-formats.md", section)
    told = tables("file-formats.md", attributes_of or section)["attribute"]
    arrays = {name: (kind, shape) for name, kind, shape, *_ in page["array"]}
    attributes = {name: kind for name, kind, _ in told}
    seen: set[str] = set()
    for path in paths:
        with h5py.File(path) as file:
            axes: dict[str, int] = {}
            found: dict[str, h5py.Dataset] = {}
            file.visititems(
                lambda name, item, found=found: (
                    found.update({f"/{name}": item}) if isinstance(item, h5py.Dataset) else None
                )
            )
            for name, array in found.items():
                kind, shape = arrays[name]
                text = h5py.check_string_dtype(array.dtype)
                assert ("string" if text else str(array.dtype)) in kind.split(" or "), name
                assert axes_fit(shape, array.shape, axes), f"{path}: {name}: {array.shape} {axes}"
            for name, value in file.attrs.items():
                kinds = {"string": bytes, "integer": np.integer, "boolean": np.bool_}
                assert isinstance(value, kinds[attributes[name]]), f"{name}: {type(value)}"
            seen |= {*found, *file.attrs}
    unseen = {*arrays, *(attributes if attributes_of is None else ())} - seen
    assert not unseen


@pytest.mark.slow
def test_file_formats_are_those_of_real_files(prepared: Path, after: Callable[[str], Ran]) -> None:
    tasks, export = after("tasks.md").folder, after("export.md").folder
    converted = min((tasks / "jagged").rglob("*.h5"))
    check_listed("Data file", prepared / "train.h5", tasks / "train.h5", converted)
    cwola = min((tasks / "scores").glob("cwola-*.h5"))
    check_listed("Score file", prepared / "scores" / "frozen.h5", cwola)
    check_listed("Embeddings", export / "vectors.h5", attributes_of="Score file")
    of_tracks = [min((tasks / "scores").glob(f"{name}-*.h5")) for name in ("origin", "vertex")]
    check_listed("Scores of tracks", *of_tracks)
    with JaggedFile(prepared / "train.h5") as file:
        of = {"constituent": file.schema.constituents, "jet": file.schema.jets}
    columns = [[f.name, kind, f.unit] for kind, columns in of.items() for f in columns]
    assert [row[:3] for row in tables("file-formats.md", "Data file")["column"]] == columns


def facts(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


@pytest.mark.slow
def test_run_folders_and_weights_are_as_told(prepared: Path) -> None:
    names = {name for name, _ in tables("file-formats.md", "Run folder")["file"]}
    runs = [path for path in (prepared / "runs").iterdir() if path.is_dir()]
    assert {path.name for run in runs for path in run.iterdir()} <= names
    known = {SNAPSHOTS, DIVERGED, RUN_ID, SENT, STATUS, LOCK, METRICS, CONFIG, SCHEMA}
    assert names == known | {MODEL, BACKBONE}
    weights = [prepared / "runs" / "ssfm" / BACKBONE, prepared / "runs" / "frozen" / MODEL]
    pretrained, told = (json.loads(facts(path)[FACTS]) for path in weights)
    assert set(told) == {name for name, *_ in tables("file-formats.md", "Weights")["key"]}
    assert told["backbone"] == pretrained["sha256"]
    assert told.keys() - pretrained.keys() == {"backbone"}
    keys = {name for name, *_ in tables("file-formats.md", "Snapshot")["key"]}
    assert keys == {*Facts.model_fields, "val"}
    for name, tensor, kind, shape, _ in tables("file-formats.md", "Caches")["file"]:
        cache = min(prepared.glob(name.replace("KEY", "*")))
        assert set(facts(cache)) == {"format", "kind", "key", "content"}
        with safe_open(cache, framework="np") as file:
            array = file.get_tensor(tensor)
        assert str(array.dtype) == kind
        assert axes_fit(shape, array.shape, {})
    keys = {name for name, *_ in tables("file-formats.md", "Caches")["key"]}
    assert keys == set(json.loads(written({})))


def told(node: ast.AST) -> str | None:
    """A text of the code; … stands for what is put into it."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_every_message_that_is_explained_is_one_of_the_code() -> None:
    nodes = (
        node
        for path in (ROOT / "jetssl_cli").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    )
    texts = {text for text in map(told, nodes) if text is not None}
    rows = re.findall(r"^\| `(.+?)` \|", PAGES["troubleshooting.md"].read_text(), re.M)
    assert len(rows) > 40
    missing = [row for row in rows if not any(row in text for text in texts)]
    assert not missing
