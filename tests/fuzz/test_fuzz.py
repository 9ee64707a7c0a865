"""Every reader, given valid inputs with a few changes, keeps to the rule of ``targets.py``.

The HDF5 readers are fuzzed by ``run.py`` in a process of its own, as anybody does it by hand; the
others here, by hypothesis. Inputs that once broke the rule stand below by themselves.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest
import torch
from fuzz import mutate, run
from fuzz.child import Child
from fuzz.targets import CORPUS, TARGETS, BrokenRuleError, Target, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.errors import ConfigError, DataError, JetSSLError, RunError, suggest
from jetssl_cli.runs import snapshot, weightfile
from jetssl_cli.safeyaml import MOST_NODES, parse_yaml
from jetssl_cli.scores.scorefile import read_scores
from jetssl_cli.scores.tasks import evaluate_tasks


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_small_and_valid(name: str, tmp_path: Path) -> None:
    assert sum(map(len, seeds(name))) < 100_000
    for content in seeds(name):
        (tmp_path / TARGETS[name].file).write_bytes(content)
        assert "valid" in TARGETS[name].run(tmp_path / TARGETS[name].file).split("; ")


@pytest.mark.parametrize("name", ["recipe", "config", "overrides", "weights"])
def test_a_changed_input_is_valid_or_refused_in_clear_lines(name: str, tmp_path: Path) -> None:
    target, contents = TARGETS[name], seeds(name)

    @settings(max_examples=100, derandomize=True, database=None)
    @given(st.sampled_from(contents), st.integers(0, 2**32), st.integers(1, 3))
    def check(content: bytes, seed: int, times: int) -> None:
        rng = Random(seed)
        for _ in range(times):
            content = target.mutate(content, rng, valid=content in contents)
        (tmp_path / target.file).write_bytes(content)
        target.run(tmp_path / target.file)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jagged", "scores"])
def test_a_changed_hdf5_file_is_valid_or_refused_in_a_clear_line(name: str, tmp_path: Path) -> None:
    words = [sys.executable, run.__file__, name, "--executions", "150", "--found", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: 150 executions" in done.stdout


@pytest.mark.slow
def test_a_crash_a_hang_memory_and_a_broken_rule_are_found(tmp_path: Path) -> None:
    """With a target that does what the word in its file says."""
    bad = tmp_path / "bad.py"
    bad.write_text(BAD)
    with Child("bad", tmp_path, "word", seconds=15.0, program=bad) as child:
        assert child.run(b"fine").outcome == "valid"
        assert child.run(b"crash").finding == "crash: the process ended with -11"
        assert child.run(b"hang").finding.startswith("hang: more than 15 s")
        assert "KeyError" in child.run(b"raise").finding
        assert child.run(b"memory").finding.startswith("memory: ")
        assert "BrokenRuleError" in child.run(b"lines").finding
        assert child.run(b"fine").outcome == "valid"


BAD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import os, signal, time
from fuzz import child, targets

def act(path):
    word = path.read_text()
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "hang":
        time.sleep(60)
    elif word == "raise":
        raise KeyError("x")
    elif word == "memory":
        b"x" * (2 * child.MEMORY)
    elif word == "lines":
        raise targets.JetSSLError("a\\nb")

targets.TARGETS["bad"] = targets.Target("word", (act,), None)
targets.seeds = lambda name: [b"fine"]
child.main()
"""


def test_every_target_is_fuzzed_by_make() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    listed = next(line for line in makefile.split("\n") if line.startswith("FUZZED := "))
    assert listed.split()[2:] == list(TARGETS)
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


# --- inputs that once broke the rule -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!int ''", "a value is not what its tag says"),
        ("a: !!bool x", "a value is not what its tag says"),
        ("a: !!timestamp x", "a value is not what its tag says"),
        ("[" * 3000, "more than 100 values lie in each other"),
        ("a: 0x" + "f" * 5000, "an integer has more than 64 bits"),
        (f"a: {2**64}", "an integer has more than 64 bits"),
        (r'a: "\ud800"', "surrogates not allowed"),
        ("&a [*a]", "an alias is a part of itself"),
        (f"a: {mutate.BOMB}", "aliases stand for more than 1,000,000 values"),
        ("? [a]\n: b", "unhashable"),
    ],
)
def test_yaml_that_broke_the_rule(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "x.yaml")
    assert str(error.value).startswith("x.yaml: not valid YAML: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_aliases_and_large_integers_are_still_yaml() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x", "") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("a: &x {b: 1}\nc: {b: *x, d: 2}", "")["c"] == {"b": {"b": 1}, "d": 2}
    assert parse_yaml(f"[{2**64 - 1}, {-(2**63)}]", "") == [2**64 - 1, -(2**63)]
    assert len(parse_yaml(f"[{'1,' * 2000}]", "")) == 2000 < MOST_NODES


def run_on(target: Target, content: bytes, folder: Path) -> str:
    (folder / target.file).write_bytes(content)
    return target.run(folder / target.file)


def test_overrides_that_broke_the_rule(tmp_path: Path) -> None:
    for word in ("a." * 2000 + "a=1", "\x1b[31m=1", "a=" + "{a: " * 900, "x\udc80=1", "a" * 9999):
        said = run_on(TARGETS["overrides"], word.encode(errors="surrogateescape"), tmp_path)
        assert len(said) < 300


def test_a_message_cannot_command_a_terminal() -> None:
    assert str(JetSSLError("a\x1b[31m\x00\u2028ä\nb")) == "a\\x1b[31m\\x00\\u2028ä\nb"
    assert suggest("zz", ["a\nb"]) == "valid: a\\nb"
    with pytest.raises(ConfigError) as error:
        TARGETS["recipe"].ways[0](write(b'"na\\nme": 1\ntree: x', "recipe.yaml"))
    assert r"na\nme = 1: no such setting" in str(error.value)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(content: bytes, name: str) -> Path:
    Path(name).write_bytes(content)
    return Path(name)


def edited(seed: str, edit: Callable[[h5py.File], object]) -> Path:
    """A file of the corpus, edited."""
    memory = io.BytesIO((CORPUS / seed).read_bytes())
    with h5py.File(memory, "r+") as file:
        edit(file)
    return write(memory.getvalue(), "edited.h5")


def replaced(name: str, data: object = None, **options: object) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options)

    return edit


def short_of_a_sum(file: h5py.File) -> None:
    """HDF5 crashes where it reads it."""
    del file["jets/labels"]
    data = file.create_dataset("jets/labels", (4,), "i2", chunks=(2,), fletcher32=True)
    data.id.write_direct_chunk((2,), b"ab")


def read_all(path: Path) -> None:
    with JaggedFile(path) as file:
        assert len(file.read(0, 1)) == len(file.labels()[:1])
        assert file.recipe
        assert file.left_out
        assert file.sources


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda f: f.attrs.update(format=np.zeros((2, 2))), "is of the format "),
        (lambda f: f.attrs.update(version=np.arange(3)), "has the version [0 1 2], expected 1"),
        (lambda f: f.attrs.update(complete=np.arange(3)), "is incomplete"),
        (lambda f: f.attrs.update(format=h5py.Empty("S1")), "is of the format "),
        (replaced("offsets", shape=(2**50,), dtype="i8", chunks=(1000,)), "than the file can hold"),
        (replaced("offsets", shape=(10**8,), dtype="i8"), "than the file can hold"),
        (replaced("jets/labels", [b"a"] * 4), "holds no numbers"),
        (replaced("jets/labels", np.zeros(4, "f8")), "jets/labels is float64, expected int16"),
        (replaced("offsets", np.array([0, 2, 2, 5, 6], ">i8")), "offsets is >i8, expected int64"),
        (lambda f: f.attrs.update(recipe="[" * 5000), "damaged: its recipe: not valid YAML"),
        (lambda f: f.attrs.update(left_out="[" * 5000), "damaged: maximum recursion depth"),
        (replaced("sources", shape=(2**40,), dtype=h5py.string_dtype()), "than the file can hold"),
        (replaced("sources", 3), "damaged: "),
        (short_of_a_sum, "has a chunk of 2 bytes, less than its sum"),
    ],
)
def test_data_files_that_broke_the_rule(edit: Callable[[h5py.File], object], words: str) -> None:
    path = edited("jagged/jetclass.h5", edit)
    with pytest.raises(DataError) as error:
        read_all(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("seed", "edit", "words"),
    [
        ("classes", lambda f: f.attrs.update(seed="x"), "damaged: invalid literal"),
        ("classes", lambda f: f.attrs.update(complete=[1, 2]), "is incomplete"),
        ("classes", replaced("jets", shape=(2**50, 2), dtype="f4", chunks=(9, 2)), "can hold"),
        ("track-origin", replaced("truth", np.zeros(6)), "truth is float64 (6,), expected"),
        ("track-origin", replaced("offsets", np.zeros((5, 1), int)), "offsets is int64 (5, 1)"),
        ("vertex", replaced("vertices", np.zeros(6)), "vertices is float64 (6,), expected"),
        ("vertex", lambda f: f.attrs.update(threshold="x"), "damaged: could not convert"),
    ],
)
def test_score_files_that_broke_the_rule(
    seed: str, edit: Callable[[h5py.File], object], words: str
) -> None:
    path = edited(f"scores/{seed}.h5", edit)
    read = read_scores if seed == "classes" else lambda file: evaluate_tasks([file])
    with pytest.raises(DataError) as error:
        read(path)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("3", "not a readable snapshot: 'int' object has no attribute 'get'"),
        ("[" * 5000, "not a readable snapshot: maximum recursion depth"),
        ('{"version": "a\\nb"}', r"has version 'a\nb'; this jetssl reads 2"),
        ('{"version": 2}', "not a readable snapshot: code: Field required"),
        (
            '{"version": 2, "code": "", "steps": -1, "seconds": 0, "reader": {}, "latest": {}, '
            '"best": [0, 0, 0]}',
            "not a readable snapshot: steps: Input should be greater than or equal to 0",
        ),
        (
            '{"version": 2, "code": "", "steps": "7", "seconds": 0, "reader": {}, "latest": {}, '
            '"best": [0, 0, 0]}',
            "not a readable snapshot: steps: Input should be a valid integer",
        ),
    ],
)
def test_snapshots_that_broke_the_rule(facts: str, words: str) -> None:
    said = {snapshot.FACTS: facts, snapshot.HASH: snapshot.content_hash({}, facts)}
    with pytest.raises(RunError) as error:
        snapshot.read(write(mutate.save({}, metadata=said), "a.safetensors"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_is_too_short() -> None:
    with pytest.raises(ConfigError, match=r"optim.betas.1"):
        TARGETS["config"].ways[0](write(b"optim: {betas: [0.9]}", "config.yaml"))


def test_weights_of_a_layout_that_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(mutate.save({}, metadata={weightfile.FACTS: '{"layout": "a\\nb"}'}))
    with pytest.raises(RunError, match=r"has weights of layout a\\nb, expected") as error:
        weightfile.restore(path, torch.nn.Identity())
    assert "\n" not in str(error.value)


def test_what_is_no_clear_line_is_seen(tmp_path: Path) -> None:
    def says(text: str) -> Callable[[Path], object]:
        def way(_: Path) -> None:
            raise DataError(text)

        return way

    for text in ("", "a\nb", " "):
        with pytest.raises(BrokenRuleError):
            Target("x", (says(text),), mutate.text).run(tmp_path)
    assert Target("x", (says("a\nb"),), mutate.text, lines=True).run(tmp_path) == "a\nb"
