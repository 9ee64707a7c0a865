"""The real command in a real process: help, mistakes, and the whole road."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pytest
import torch
import typer
import uproot
import yaml

from jetssl_cli.cli.app import app
from jetssl_cli.cli.main import main
from jetssl_cli.config import Layer, to_yaml
from jetssl_cli.runs import pretrain
from jetssl_cli.runs.finetune_config import on_backbone

COMMANDS = (
    "simulate", "convert", "merge", "pretrain", "finetune", "sync", "scan", "export", "evaluate",
    "verify", "workflow",
)  # fmt: skip
HEAVY = (
    "torch", "lightning", "mlflow", "uproot", "awkward", "h5py", "sklearn", "matplotlib",
    "pythia8mc", "fastjet", "onnx", "onnxruntime", "snakemake",
)  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jetssl_cli.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(' '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", ["simulate jetclass", "simulate btag", *COMMANDS[1:]])
def test_each_command_explains_every_option_and_shows_an_example(jetssl, command):
    done = jetssl(*command.split(), "--help")
    assert done.returncode == 0
    assert f"jetssl {command}" in done.stdout.split("Example")[-1]
    options = [line for line in done.stdout.splitlines() if re.match(r"│ \*?\s*--", line)]
    assert options
    for line in options:
        assert len(line.strip("│ ").split("  ")) > 1, f"no help: {line}"


LIMITED = """
import resource, sys
from pathlib import Path
from jetssl_cli.cli.main import main
import jetssl_cli.runs.module, jetssl_cli.runs.training
from jetssl_cli.runs import training
right = training._fit
def fit(*args):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    right(*args)
training._fit = fit
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_training_out_of_memory_ends_with_its_own_exit_code(jagged, tmp_path):
    """The system refuses memory beyond 200 MiB; a batch of all jets needs more."""
    files = ("--train", jagged / "train.h5", "--val", jagged / "val.h5", "--out", "run")
    words = ("pretrain", "--method", "ssfm", "--size", "base", "--steps", "3", *files)
    more = ("tracking=false", "data.batch_size=1300", "train.precision=32")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, (*words, *more))],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: out of memory (")
    assert "train.accumulate=2 (the same batch in smaller parts)" in last
    assert "Traceback" not in done.stderr


ROOT = Path(__file__).parent.parent


def commands_of(page):
    """The jetssl commands of a page, without comments; a backslash continues a line.

    An option whose name is a variable of the shell is left out.
    """
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    text = re.sub(r" --\$\w+", "", text)
    return [
        line for line in text.splitlines() if re.match(r"(\.venv/bin/)?jetssl \w", line.strip())
    ]


def demo_lines():
    """The commands of ``make demo``."""
    plain = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return plain.replace("\\\n", " ").splitlines()


def test_the_demo_removes_what_it_makes_and_nothing_else():
    """Some train into its folder, as the quick start does."""
    lines = demo_lines()
    (removed,) = (line.split()[2:] for line in lines if line.startswith("rm -rf"))
    made = {line.split(" --out ")[1].split()[0] for line in lines if " --out " in line}
    caches = {"demo/.train.*", "demo/.fingerprints.json"}
    assert made == {*removed} - caches


PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if commands_of(page))


@pytest.mark.parametrize(
    "page", ["README.md", "Makefile", *(f"docs/{page.name}" for page in PAGES)]
)
def test_documented_commands_are_understood(page):
    """Every command that a page shows has only options that exist, and all that are required."""
    group = typer.main.get_command(app)
    if page == "Makefile":
        lines = [line for line in demo_lines() if "bin/jetssl " in line]
        assert len(lines) == 13
    else:
        lines = commands_of(ROOT / page)
        assert len(lines) >= (8 if page == "README.md" else 1)
    for line in lines:
        _, name, *words = shlex.split(line, comments=True)
        found = group.commands.get(name)
        if name == "simulate":
            name, *words = words
            found = found.commands[name]
        if found is not None:
            found.make_context(name, words)


def refused(done, tmp_path, *words, kept=()):
    """One clear line, exit code 2, and nothing left behind."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    left = {path.name for path in tmp_path.rglob("*")} - set(kept)
    assert left <= {"mlflow.db"}


SAMPLE = "jetclass/val/HToBB_120.root"


@pytest.fixture
def tree(samples):
    """The branches of one sample file, to spoil."""
    return uproot.open(samples / SAMPLE)["tree"].arrays(ak_add_doc=False)


def write_tree(path, arrays, name="tree"):
    fields = [field for field in arrays.fields if not field.startswith("npart_")]
    with uproot.recreate(path) as file:
        file.mktree(name, {field: arrays[field].type.content for field in fields})
        file[name].extend({field: ak.to_packed(arrays[field]) for field in fields})


def hear_interrupts():
    """Undo what a shell does to background jobs: they ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TestConvert:
    def test_missing_file(self, jetssl, tmp_path):
        done = jetssl("convert", "no.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "no.root", "no such file")

    def test_not_root(self, jetssl, tmp_path):
        (tmp_path / "a.root").write_text("this is not a ROOT file")
        done = jetssl("convert", "a.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "a.root", "is no ROOT, parquet or HDF5", kept=["a.root"])

    def test_truncated_root(self, jetssl, tmp_path, samples):
        whole = (samples / SAMPLE).read_bytes()
        (tmp_path / "a.root").write_bytes(whole[: len(whole) // 2])
        done = jetssl("convert", "a.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "a.root", kept=["a.root"])

    def test_no_such_tree(self, jetssl, tmp_path, tree):
        write_tree(tmp_path / "a.root", tree, "Trees")
        done = jetssl("convert", "a.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "no tree 'tree'", "did you mean 'Trees'?", kept=["a.root"])

    def test_missing_branch(self, jetssl, tmp_path, tree):
        tree = ak.with_field(ak.without_field(tree, "part_d0err"), tree.part_d0err, "part_d0error")
        write_tree(tmp_path / "a.root", tree)
        done = jetssl("convert", "a.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "part_d0err", "did you mean 'part_d0error'?", kept=["a.root"])

    @pytest.mark.parametrize("value", [0, 1])
    def test_no_label_or_two(self, jetssl, tmp_path, tree, value):
        changed = tree.label_Hbb.to_numpy().copy() if value == 0 else tree.label_QCD.to_numpy() * 0
        changed[3] = value
        name = "label_Hbb" if value == 0 else "label_QCD"
        write_tree(tmp_path / "a.root", ak.with_field(tree, changed, name))
        done = jetssl("convert", "a.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "jet 3", "exactly one", kept=["a.root"])

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_that_are_not_finite(self, jetssl, tmp_path, tree, value):
        spoiled = tree.jet_sdmass.to_numpy().copy()
        spoiled[7] = value
        write_tree(tmp_path / "a.root", ak.with_field(tree, spoiled, "jet_sdmass"))
        done = jetssl("convert", "a.root", "--recipe", "jetclass", "--out", "out")
        refused(done, tmp_path, "jet 7", "jet_sdmass", "finite", kept=["a.root"])

    def test_unknown_recipe(self, jetssl, tmp_path, samples):
        done = jetssl("convert", samples / SAMPLE, "--recipe", "jetclas", "--out", "out")
        refused(done, tmp_path, "no recipe 'jetclas'", "did you mean 'jetclass'?")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_leaves_only_whole_files(self, tmp_path, samples, number):
        """It reaches all processes, as from a terminal or a batch system."""
        command = [Path(sys.executable).with_name("jetssl"), "convert", samples, "--recipe"]
        words = [*map(str, command), "jetclass", "--out", str(tmp_path / "out"), "--jobs", "2"]
        process = subprocess.Popen(
            words,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,  # noqa: PLW1509
        )
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.h5")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert "Traceback" not in stderr
        assert not list(tmp_path.rglob("*.partial"))
        for path in tmp_path.rglob("*.h5"):
            with h5py.File(path) as file:
                assert file.attrs["complete"]

    def test_a_killed_worker_is_one_clear_line(self, tmp_path, samples):
        for number in range(20):
            for path in (samples / "jetclass" / "train").iterdir():
                (tmp_path / "in" / f"{number}").mkdir(parents=True, exist_ok=True)
                (tmp_path / "in" / f"{number}" / path.name).symlink_to(path)
        words = [str(Path(sys.executable).with_name("jetssl")), "convert", "in", "--recipe"]
        process = subprocess.Popen(
            [*words, "jetclass", "--out", "out", "--jobs", "2"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.h5")) and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
        os.kill(int(next(pid for pid in names if "spawn_main" in names[pid])), signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 2, stderr
        assert "error: a converting process was killed" in stderr
        assert "Traceback" not in stderr


class TestMerge:
    def test_different_recipes(self, jetssl, tmp_path, samples, shared_data):
        for source, recipe in ((samples / SAMPLE, "jetclass"), (shared_data, "jetclass2")):
            path = source if source.is_file() else source / "JetClassII_example.root"
            assert jetssl("convert", path, "--recipe", recipe, "--out", "out").returncode == 0
        done = jetssl("merge", "out", "--out", "all.h5")
        kept = ["out", "HToBB_120.h5", "JetClassII_example.h5"]
        refused(done, tmp_path, "recipe", "jetclass2", kept=kept)

    def test_not_hdf5(self, jetssl, tmp_path):
        (tmp_path / "a.h5").write_text("no")
        done = jetssl("merge", "a.h5", "--out", "all.h5")
        refused(done, tmp_path, "a.h5", "HDF5", kept=["a.h5"])

    def test_a_file_in_the_place_of_a_folder(self, jetssl, tmp_path, jagged):
        """The reason alone is told, without the number and the hidden file that it came of."""
        (tmp_path / "a").touch()
        done = jetssl("merge", jagged / "val.h5", "--out", "a/all.h5")
        refused(done, tmp_path, "a/all.h5: cannot be written: ", kept=["a"])
        assert "Errno" not in done.stderr
        assert "buckets" not in done.stderr


class TestPretrain:
    @pytest.fixture
    def words(self, jagged):
        data = ("--train", jagged / "train.h5", "--val", jagged / "val.h5")
        return ("pretrain", *data, "--out", "run")

    def test_unknown_method(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "sfm")
        refused(done, tmp_path, "no method 'sfm'", "did you mean 'ssfm'?")

    def test_unknown_size(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "ssfm", "--size", "smal")
        refused(done, tmp_path, "no size 'smal'", "did you mean 'small'?")

    def test_unknown_override(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "ssfm", "objective.mask.shar=0.3")
        refused(done, tmp_path, "objective.mask.shar = 0.3", "did you mean 'share'?")

    def test_a_setting_without_its_section(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "ssfm", "batch_size=50")
        refused(done, tmp_path, "batch_size = 50: no such setting; did you mean data.batch_size?")

    @pytest.mark.parametrize("option", [("--optim.lr", "1e-3"), ("--optim.lr=1e-3",)])
    def test_a_setting_as_an_option(self, jetssl, tmp_path, words, option):
        done = jetssl(*words, *option, "--method", "ssfm")
        told = "--optim.lr: no such option; a setting has no dashes: optim.lr=1e-3"
        refused(done, tmp_path, told)

    def test_several_files(self, jetssl, tmp_path, words, jagged):
        """Each has its own option; a shell makes words of a pattern."""
        more = ("--method", "ssfm", "--size", "tiny", "--train", jagged / "test.h5", "--dry-run")
        done = jetssl(*words, *more, "--json", "data.batch_size=9", "train.steps=1", *TINY)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["train_jets"] == 1800
        done = jetssl(*words, jagged / "test.h5")
        refused(done, tmp_path, "test.h5: stands without an option", "--train FILE --train FILE")

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("optim.lr=fast", "optim.lr = 'fast'"),
            ("optim.lr=yes", "optim.lr = True: a number is needed"),
            ("train.steps=true", "train.steps = True: a number is needed"),
            ("optim.betas=[0.9,1.0]", "optim.betas.1 = 1.0"),
            ("train.seed=99999999999999999999999", "train.seed"),
            ("encoder.attention=varlen", "encoder.attention = 'varlen': needs a CUDA GPU"),
            ("data.workers=5000", "5000"),
        ],
    )
    def test_override_of_the_wrong_type_or_value(self, jetssl, tmp_path, words, override, told):
        if "varlen" in override and torch.cuda.is_available():
            pytest.skip("varlen runs here")
        refused(jetssl(*words, "--method", "ssfm", "--size", "tiny", override), tmp_path, told)

    def test_missing_data(self, jetssl, tmp_path):
        data = ("--train", "no.h5", "--val", "no.h5")
        done = jetssl("pretrain", "--method", "ssfm", *data, "--out", "run")
        refused(done, tmp_path, "no.h5: no such file")

    def test_own_config_is_named_in_its_errors(self, jetssl, tmp_path, words):
        (tmp_path / "my.yaml").write_text("encoder: {widht: 64}")
        done = jetssl(*words, "--method", "ssfm", "--config", "my.yaml")
        refused(done, tmp_path, "my.yaml", "encoder.widht", "'width'", kept=["my.yaml"])

    def test_what_a_new_run_needs(self, jetssl, tmp_path):
        done = jetssl("pretrain", "--train", "a.h5", "--out", "run")
        refused(done, tmp_path, "--method, --val: needed to begin a run")
        done = jetssl("pretrain", "--resume", "run")
        told = "--method, --train, --val: needed to begin a run: run holds no run to go on with"
        refused(done, tmp_path, told)

    def test_what_the_own_config_says_is_not_needed(self, jetssl, tmp_path):
        (tmp_path / "own.yaml").write_text("objective: {name: ssfm}\ndata: {train: [a.h5]}\n")
        done = jetssl("pretrain", "--config", "own.yaml", "--out", "run")
        assert "error: --val: needed to begin a run" in done.stderr
        done = jetssl("pretrain", "--config", "own.yaml", "--out", "run", "data.val=[b.h5]")
        assert "a.h5: no such file" in done.stderr

    def test_where_the_run_is(self, jetssl, tmp_path, words):
        for more in (words[:-2], (*words, "--resume", "run")):
            done = jetssl(*more, "--method", "ssfm")
            refused(done, tmp_path, "one of --out and --resume is needed")

    def test_two_budgets(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "ssfm", "--steps", 5, "--jets", 100)
        refused(done, tmp_path, "steps and jets are both given; one of them ends a run")

    def test_a_time_that_is_none(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "ssfm", "--max-time", "5 min")
        refused(done, tmp_path, "train.max_time = '5 min'", "such as 2d, 24h")

    def test_no_steps(self, jetssl, tmp_path, words):
        done = jetssl(*words, "--method", "ssfm", "--steps", 0)
        refused(done, tmp_path, "train.steps = 0", "greater than 0")

    def test_jets_replace_the_steps_of_the_own_config(self, jetssl, tmp_path, words):
        (tmp_path / "my.yaml").write_text("train: {steps: 100000}\ndata: {batch_size: 40}")
        own = ("--config", "my.yaml", "--jets", 100, "tracking=false", *TINY)
        done = jetssl(*words, "--method", "ssfm", "--size", "tiny", *own)
        assert done.returncode == 0, done.stderr
        assert "120/100 jets" in done.stderr
        rows = [
            json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        assert rows[-1]["step"] == 3
        train = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
        assert (train["steps"], train["jets"], train["max_time"]) == (None, 100, None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to write: give --out, --embeddings, --root or --onnx"),
        (("--out", "s.h5", "--precision", "16"), "precision = '16'"),
        (("--out", "s.h5"), "no such run folder"),
    ],
)
def test_what_export_refuses(jetssl, tmp_path, jagged, words, told):
    refused(jetssl("export", "run", "--data", jagged / "test.h5", *words), tmp_path, told)


@pytest.mark.parametrize("option", ["--out", "--embeddings", "--root", "--onnx"])
def test_export_looks_at_the_places_of_its_files_first(jetssl, tmp_path, jagged, option):
    """Before the run is read, which takes a while, and is none here."""
    (tmp_path / "a").touch()
    more = ("--onnx", "new/b") if option == "--out" else ("--out", "new/b")
    done = jetssl("export", "run", "--data", jagged / "test.h5", *more, option, "a/b")
    refused(done, tmp_path, "error: a/b: cannot be written: ", kept=["a"])


class TestFinetune:
    @pytest.fixture
    def words(self, jagged):
        return ("--train", jagged / "train.h5", "--val", jagged / "val.h5", "--out", "run")

    def test_two_modes(self, jetssl, tmp_path, words):
        done = jetssl("finetune", "--backbone", "b", *words, "--frozen", "--unfreeze-at", 5)
        refused(done, tmp_path, "--frozen and --unfreeze-at are both given")

    def test_a_pickle_as_backbone(self, jetssl, tmp_path, words):
        torch.save({}, tmp_path / "a.ckpt")
        done = jetssl("finetune", "--backbone", "a.ckpt", *words)
        refused(done, tmp_path, "a.ckpt: is a file", "never read", kept=["a.ckpt"])

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ("--num-jets 50", "--num-jets: data.subset = 50: the run in run has None"),
            ("--cache-embeddings", "--cache-embeddings: cache_embeddings = True: the run in run"),
            ("--full", "--full: objective.frozen = False: the run in run has True"),
            ("--lora 2", "--lora: lora = {'rank': 2, 'alpha': 16.0}: the run in run has None"),
            ("--num-jets 50 data.subset=40", "--num-jets: data.in_memory = True: the run in run"),
            ("data.in_memory=true", "error: data.in_memory = True: the run in run has False"),
            ("--steps 7", "error: train.steps = 7: the run in run has 3, and cannot go on with"),
            ("--signal Hbb", "error: --signal: the run in run is one of supervised"),
            ("--num-background 7", "error: --num-background: the run in run is one of supervised"),
        ],
    )
    def test_a_run_that_goes_on_names_what_was_typed(self, jetssl, tmp_path, option, told):
        """One option may say several settings."""
        (tmp_path / "a").mkdir()
        (tmp_path / "run").mkdir()
        settings: dict[str, object] = {"out": "a", "data": {"train": ["t.h5"], "val": ["v.h5"]}}
        begun = pretrain.load_config("ssfm", "tiny", Layer("", settings))
        (tmp_path / "a" / "config.yaml").write_text(to_yaml(begun))
        settings |= {"backbone": "a", "train": {"steps": 3}, "objective": {"frozen": True}}
        tuned = on_backbone(begun, Path("a"), [Layer("", settings)])
        (tmp_path / "run" / "config.yaml").write_text(to_yaml(tuned))
        done = jetssl("finetune", "--resume", "run", *option.split())
        refused(done, tmp_path, told, kept=["a", "run", "config.yaml"])

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ("--signal Hbb", "--signal: data.mixture.signal = Hbb: the run in run has Tbqq"),
            ("--signal Hbb --num-signal 0", "--signal: data.mixture.signal = Hbb: the run in run"),
            ("--num-signal 0", "--num-signal: data.mixture.num_signal = 0: the run in run has 9"),
            ("--background Hbb", "--background: data.mixture.background = Hbb: the run in run has"),
            ("--num-background 7", "--num-background: data.mixture.num_background = 7: the run in"),
            (
                "data.mixture.signal=Hbb",
                "error: data.mixture.signal = Hbb: the run in run has Tbqq",
            ),
        ],
    )
    def test_a_run_without_labels_names_what_was_typed(self, jetssl, tmp_path, option, told):
        (tmp_path / "a").mkdir()
        (tmp_path / "run").mkdir()
        data: dict[str, object] = {"train": ["t.h5"], "val": ["v.h5"]}
        begun = pretrain.load_config("ssfm", "tiny", Layer("", {"out": "a", "data": data}))
        (tmp_path / "a" / "config.yaml").write_text(to_yaml(begun))
        data |= {"mixture": {"signal": "Tbqq", "num_signal": 9}}
        settings = {"out": "run", "backbone": "a", "data": data}
        tuned = on_backbone(begun, Path("a"), [Layer("", settings)], task="cwola")
        (tmp_path / "run" / "config.yaml").write_text(to_yaml(tuned))
        done = jetssl("finetune", "--resume", "run", *option.split())
        refused(done, tmp_path, told, kept=["a", "run", "config.yaml"])

    def test_a_scan_of_no_numbers(self, jetssl, tmp_path, words, jagged):
        test = ("--test", jagged / "test.h5")
        done = jetssl("scan", "--backbone", "b", "--num-jets", "ten", *words, *test)
        refused(done, tmp_path, "num_jets = 'ten'")


def test_evaluate_refuses_scores_without_class_names(jetssl, tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["scores"] = np.full((4, 2), 0.5, np.float32)
        file["labels"] = np.zeros(4, np.int64)
        file.attrs.update({"format": "jetssl-scores", "version": 1, "complete": True})
    done = jetssl("evaluate", "s.h5")
    refused(done, tmp_path, "s.h5", "class names", kept=["s.h5"])


BAD_SCORES = {
    "label,score_QCD,score_Hbb\nQCD,nan,0.5\n": "jet 0: a score is not finite",
    "label,score_QCD,score_Zqq\nQCD,0.5,0.5\n": "lacks Hbb; adds Zqq",
}


@pytest.mark.slow
@pytest.mark.parametrize(("text", "problem"), BAD_SCORES.items(), ids=BAD_SCORES.values())
def test_evaluate_refuses_bad_scores_in_one_line(jetssl, tmp_path, text, problem):
    (tmp_path / "good.csv").write_text("label,score_QCD,score_Hbb\nQCD,0.5,0.5\nHbb,0.5,0.5\n")
    (tmp_path / "bad.csv").write_text(text)
    words = ("evaluate", "good.csv", "bad.csv", "--out", "tables", "--report", "report.html")
    refused(jetssl(*words), tmp_path, "bad.csv", problem, kept=["good.csv", "bad.csv"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_written_stops_no_work():
    work = (
        "from jetssl_cli.progress import note, progress, warn\nwarn('a'); note('b')\n"
        "with progress('c', 1, 'jets') as advance: advance(1)\nprint('done')"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-c", work]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_terminal_that_closes_stops_no_work():
    work = (
        "import os\nfrom jetssl_cli.progress import progress\n"
        "with progress('c', 1, 'jets') as on: os.write(1, b'begun\\n'); os.read(0, 1); on(1)\n"
        "os.write(1, b'done\\n')"
    )
    master, slave = pty.openpty()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", work], stderr=slave, text=True, **pipes) as child:
        os.close(slave)
        assert child.stdout.readline() == "begun\n"
        os.close(master)
        told, _ = child.communicate("\n", timeout=60)
    assert (child.returncode, told) == (0, "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "jetssl_cli", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode
    assert b"Traceback" not in done.stderr


def test_evaluate_refuses_an_unknown_format(jetssl, tmp_path):
    done = jetssl("evaluate", "s.h5", "--format", "jsn")
    refused(done, tmp_path, "'jsn'", "did you mean 'json'?")


OFF = "tracking=false"
TINY = ("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.registers=2")


@pytest.mark.slow
def test_the_whole_road(jetssl, tmp_path, samples):  # noqa: PLR0915
    """ROOT files to a score table, every step through the command line."""

    def do(*words):
        done = jetssl(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for split in ("train", "val", "test"):
        source = samples / "jetclass" / split
        do("convert", source, "--recipe", "jetclass", "--out", f"each/{split}", "--jobs", 2)
        do("merge", f"each/{split}", "--out", f"{split}.h5", "--seed", 1)
    data = ("--train", "train.h5", "--val", "val.h5", "--steps", 4)
    do("pretrain", "--method", "ssfm", "--size", "tiny", *data, "--out", "ssfm", *TINY)
    modes = {"frozen": ["--frozen"], "full": [OFF], "random": ["--random", OFF]}
    for other in ("--full", "--from-scratch", "--unfreeze-at 2", "--lora 2 --layer-decay 0.5"):
        name = other.split()[0].strip("-")
        do("finetune", "--backbone", "ssfm", *data, "--out", f"m/{name}", *other.split(), OFF)
    few = ("--num-jets", 20, "--cache-embeddings", "--frozen", "--patience", 1, OFF)
    told = do("finetune", "--backbone", "ssfm", *data, "--out", "m/few", *few)
    assert told == "m/few: finetuned\n"
    for name, words in modes.items():
        do("finetune", "--backbone", "ssfm", *data, "--out", name, *words)
        do("export", name, "--data", "test.h5", "--out", f"{name}.h5")
    do("export", "ssfm", "--data", "test.h5", "--embeddings", "vectors.h5")
    told = do("export", "frozen", "--data", "test.h5", "--root", "s.root", "--onnx", "n.onnx")
    assert told.splitlines()[0].startswith("s.root: scores of 500 jets")
    assert told.splitlines()[1].startswith("n.onnx: network")
    assert uproot.open(tmp_path / "s.root")["scores"].num_entries == 500
    words = ("--format", "json", "--out", "tables", "--plots", "plots", "--report", "report.html")
    rows = json.loads(do("evaluate", "frozen.h5", "full.h5", "random.h5", *words))
    assert {row["scores"] for row in rows} == {"frozen.h5", "full.h5", "random.h5"}
    accuracies = [row["accuracy"]["value"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [len(row["comparisons"]) for row in rows] == [0, 1, 1]  # the jets are the same
    assert (tmp_path / "plots" / "confusion_full.pdf").exists()
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    for row in rows:
        assert row["num_jets"] == 500
        assert row["accuracy"].keys() == {"value", "low", "high"}
        assert set(row["rejection"]) == {
            "Hbb",
            "Hcc",
            "Hgg",
            "H4q",
            "Hqql",
            "Zqq",
            "Wqq",
            "Tbqq",
            "Tbl",
        }
        assert row["rejection"]["Hbb"].keys() == {"value", "low", "high", "efficiency", "bound"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "table.md",
        "table.csv",
        "table.json",
        "table.tex",
    }
    for form, sign in {"rich": "±", "markdown": "|", "csv": ",", "latex": "&"}.items():
        compared = ("--compare", "frozen", "random", "--confusion")
        table = do("evaluate", "frozen.h5", "random.h5", "--format", form, *compared)
        assert all(word in table for word in ("frozen", "random", sign))
    assert not list(tmp_path.rglob("*.partial"))

    # the jets are not overwritten by their scores
    jets = (tmp_path / "test.h5").read_bytes()
    done = jetssl("export", "frozen", "--data", "test.h5", "--out", "test.h5", "--overwrite")
    assert done.returncode == 2
    assert (tmp_path / "test.h5").read_bytes() == jets

    # a second run into the same folder is refused and changes nothing
    before = (tmp_path / "ssfm" / "model.safetensors").read_bytes()
    done = jetssl("pretrain", "--method", "ssfm", "--size", "tiny", *data, "--out", "ssfm", *TINY)
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert (tmp_path / "ssfm" / "model.safetensors").read_bytes() == before

    # the resolved configuration is enough to run again
    config = tmp_path / "ssfm" / "config.yaml"
    words = ("--method", "ssfm", "--config", config, "--train", "train.h5", "--val", "val.h5")
    do("pretrain", *words, "--out", "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == before


INTERRUPTED = """
import os, signal, sys
from jetssl_cli.cli.main import main
class Finder:
    def find_spec(self, name, *where):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize("module", ["typer", "pydantic", "jetssl_cli.data.inspect", "h5py"])
def test_ctrl_c_while_modules_are_imported(tmp_path, module):
    """Those of the command line, and those of the command."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(module=module), "inspect", "no.h5"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


BROKEN_OFF = """
import os, signal, sys
from jetssl_cli.cli.main import main
class Finder:
    def find_spec(self, name, *where):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as err:
                raise ImportError("initialization failed") from err
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize("module", ["pythia8mc", "fastjet"])
def test_ctrl_c_while_a_module_in_c_begins(tmp_path, module):
    """Which is installed, though its failure is an ImportError."""
    words = ["simulate", "jetclass", "--num-jets", "1", "--out", "sim"]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_OFF.format(module=module), *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


TERMINATED = """
import os, signal
from jetssl_cli.cli.main import main
from jetssl_cli.data import merge
def gather(*args):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
merge._gather = gather
main()
"""


def test_sigterm_leaves_nothing_half_written(tmp_path, jagged):
    """Also where it comes twice, the second time while the first is answered."""
    words = ("merge", str(jagged / "val.h5"), "--out", "made/all.h5")
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "terminated"), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


DROPPED = """
import os, time
from jetssl_cli.cli.main import main
from jetssl_cli.data import merge
class Dropping:
    def __del__(self):
        os.kill(os.getpid(), {number})
def gather(*args):
    Dropping()
    time.sleep(60)
    raise AssertionError("it goes on")
merge._gather = gather
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_where_exceptions_are_dropped_is_not_lost(tmp_path, jagged, number):
    words = ("merge", str(jagged / "val.h5"), "--out", "made/all.h5")
    done = subprocess.run(
        [sys.executable, "-c", DROPPED.format(number=int(number)), *words],
        cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=hear_interrupts,
    )  # fmt: skip
    assert done.returncode == 128 + number, done.stderr
    assert "Exception ignored" not in done.stderr
    assert not list(tmp_path.iterdir())


def closed_at_once(words, stream, tmp_path):
    """Run the command; nobody reads what it writes there."""
    ours, theirs = os.pipe()
    os.close(ours)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    command = [sys.executable, "-m", "jetssl_cli", *map(str, words)]
    done = subprocess.run(command, cwd=tmp_path, check=False, text=True, **streams)
    os.close(theirs)
    return done


@pytest.mark.parametrize(
    "words", ["--help", "--version", "merge --help", "inspect {}", "inspect {} --json"]
)
def test_a_pipe_that_nobody_reads_is_no_error(tmp_path, jagged, words):
    words = words.format(jagged / "val.h5").split()
    done = closed_at_once(words, "stdout", tmp_path)
    assert done.returncode == 128 + signal.SIGPIPE
    assert all(line.startswith("inspect: ") for line in done.stderr.splitlines())


def test_a_log_that_nobody_reads_stops_no_work(tmp_path, jagged):
    done = closed_at_once(("merge", jagged / "val.h5", "--out", "a.h5"), "stderr", tmp_path)
    assert done.returncode == 0
    assert "200 jets of 1 files" in done.stdout
    assert (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("merge", "Missing argument 'SOURCE...' (jetssl merge --help)"),
        ("inspect a.h5 b.h5", "(b.h5) (jetssl inspect --help)"),
        ("simulate jetclas", "No such command 'jetclas'. Did you mean 'jetclass'? (jetssl sim"),
        ("merge a --out b --num-jets few", "Invalid value for '--num-jets': "),
        ("merge a --out", "Option '--out' requires an argument"),
        ("merge a --out b --out=c", "error: --out was given twice"),
    ],
)
def test_words_that_are_no_command_are_one_line(jetssl, tmp_path, words, told):
    done = jetssl(*words.split())
    refused(done, tmp_path, told)
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.h5").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(sys, "argv", ["jetssl", "inspect", str(tmp_path / "a.h5")])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1
    assert "a.h5' is not readable" in told


def test_words_alone_show_the_help(jetssl):
    for words in ((), ("simulate",)):
        done = jetssl(*words)
        assert (done.returncode, done.stderr) == (2, "")
        assert "Commands" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_which_goes_on_later(tmp_path, jagged, jetssl, number):
    new = ["--method", "ssfm", "--size", "tiny", "--steps", 60, "tracking=false", *TINY]
    new += ["--train", jagged / "train.h5", "--val", jagged / "val.h5"]
    new += ["train.precision=32"]
    words = [str(Path(sys.executable).with_name("jetssl")), "pretrain", *map(str, new)]
    process = subprocess.Popen(
        [*words, "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as of the commands below
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,  # noqa: PLW1509
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert "; --resume run goes on" in stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()

    # the same command again is refused; other settings are; as it was, it goes on
    done = jetssl("pretrain", *new, "--out", "run")
    assert (done.returncode, "--resume goes on with it" in done.stderr) == (2, True)
    done = jetssl("pretrain", "--resume", "run", "optim.lr=1e-5")
    assert done.returncode == 2
    assert "optim.lr = 1e-05: the run in run has " in done.stderr
    for _ in range(2):  # the second time there is nothing to do
        done = jetssl("pretrain", "--resume", "run", "--method", "ssfm")
        assert done.returncode == 0, done.stderr
    jetssl("pretrain", *new, "--resume", "whole")
    found, wanted = (tmp_path / name / "model.safetensors" for name in ("run", "whole"))
    assert found.read_bytes() == wanted.read_bytes()
