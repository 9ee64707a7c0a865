"""What goes wrong on real machines: kills, full disks, flipped bits."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from jetssl_cli.data import hdf5
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.converted import convert_file
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.errors import DataError

JETSSL = str(Path(sys.executable).with_name("jetssl"))
RECIPE = load_recipe("jetclass")


def test_hdf5_may_write_to_a_file_that_an_interrupt_has_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does where the interrupt comes before the block of the file begins, or as it ends."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    disk = hdf5._Disk(tmp_path / "a.h5", "w+")
    file = h5py.File(disk, "w", libver=hdf5.LAYOUT)
    file["numbers"] = np.zeros(100_000)
    disk.close()
    del file
    assert not told


def run_and_kill(words: list[str], moment: float) -> None:
    """Run the command, kill it at this moment [s], and wait for the end of its workers."""
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(moment)
        children = children_of(run.pid)
        run.kill()
    wait_for_the_end(children)


def children_of(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return []


def lives(process: str) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return ") Z " not in Path("/proc", process, "stat").read_text()
    except OSError:
        return False


def wait_for_the_end(processes: list[str]) -> None:
    deadline = time.monotonic() + 60
    while any(map(lives, processes)):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.02)


def seconds(words: list[str]) -> float:
    begin = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "kills"), [("1", 8), ("2", 5)])
def test_a_conversion_killed_at_random_moments_ends_in_the_same_bytes(
    tmp_path: Path, samples: Path, jobs: str, kills: int
) -> None:
    words = [JETSSL, "convert", str(samples / "jetclass"), "--recipe", "jetclass", "--jobs", jobs]
    whole = seconds([*words, "--out", str(tmp_path / "whole")])
    moments = np.random.default_rng(int(jobs)).uniform(0.4, 1.1, kills) * whole
    out = [*words, "--out", str(tmp_path / "out")]
    for index, moment in enumerate(moments):
        if index % 3 == 0:  # so that there is something left to do
            for path in list((tmp_path / "out").rglob("*.h5"))[:20]:
                path.unlink()
        run_and_kill(out, moment)
        for path in (tmp_path / "out").rglob("*.h5"):
            if not path.name.startswith("."):
                JaggedFile(path).close()
    subprocess.run(out, check=True, capture_output=True)
    made = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert made == {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.h5")}
    for path in made:
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


@pytest.mark.slow
def test_a_merge_killed_at_random_moments_ends_in_the_same_bytes(
    tmp_path: Path, samples: Path
) -> None:
    source = samples / "jetclass" / "train"
    convert(ConvertConfig(sources=(source,), recipe=RECIPE, out=tmp_path / "in"))
    words = [JETSSL, "merge", str(tmp_path / "in"), "--overwrite", "--out"]
    whole = seconds([*words, str(tmp_path / "whole.h5")])
    expected = (tmp_path / "whole.h5").read_bytes()
    for moment in np.random.default_rng(0).uniform(0.4, 1.1, 12) * whole:
        run_and_kill([*words, str(tmp_path / "out.h5")], moment)
        if (tmp_path / "out.h5").exists():
            assert (tmp_path / "out.h5").read_bytes() == expected
    subprocess.run([*words, str(tmp_path / "out.h5")], check=True, capture_output=True)
    assert (tmp_path / "out.h5").read_bytes() == expected
    assert {path.name for path in tmp_path.iterdir()} == {"in", "whole.h5", "out.h5"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_conversion_leaves_nothing_half(
    tmp_path: Path, samples: Path, jobs: str
) -> None:
    for copy in range(20):
        shutil.copytree(samples / "jetclass" / "train", tmp_path / "in" / str(copy))
    out = tmp_path / "out"
    words = [JETSSL, "convert", str(tmp_path / "in"), "--recipe", "jetclass", "--out", str(out)]
    with subprocess.Popen(
        [*words, "--jobs", jobs],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        while not list(out.rglob("*.h5")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not [path for path in out.rglob(".*") if path.is_file()]
    for path in out.rglob("*.h5"):
        JaggedFile(path).close()


def test_the_workers_of_a_killed_conversion_end(tmp_path: Path, samples: Path) -> None:
    for copy in range(20):
        shutil.copytree(samples / "jetclass" / "train", tmp_path / "in" / str(copy))
    words = [JETSSL, "convert", str(tmp_path / "in"), "--recipe", "jetclass", "--jobs", "2"]
    with subprocess.Popen([*words, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE) as run:
        while not list((tmp_path / "out").rglob("*.h5")):
            assert run.poll() is None
            time.sleep(0.01)
        children = children_of(run.pid)
        assert len(children) >= 2
        run.kill()
    wait_for_the_end(children)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.4, 0.9])
@pytest.mark.parametrize("command", ["convert", "merge"])
def test_a_full_disk(tmp_path: Path, samples: Path, command: str, share: float) -> None:
    """A limit on the size of files does what a full disk does: a write fails at any moment."""
    source = samples / "jetclass" / "val" / "HToBB_120.root"
    whole = convert_file(source, tmp_path / "whole.h5", RECIPE).output
    words = ["convert", str(source), "--recipe", "jetclass", "--out", str(tmp_path / "out")]
    if command == "merge":
        words = ["merge", str(whole), "--out", str(tmp_path / "out" / "merged.h5")]
    limit = int(whole.stat().st_size * share)
    done = subprocess.run(
        [JETSSL, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # Python would keep half of a module
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "cannot be written" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"whole.h5"}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["jetclass", "jetclass2"])
def test_flipped_bits_in_a_source_never_end_in_anything_but_a_clear_error(
    request: pytest.FixtureRequest, samples: Path, tmp_path: Path, source: str
) -> None:
    """What no checksum of ROOT covers may pass; then all numbers are still finite."""
    path = samples / "jetclass" / "val" / "HToBB_120.root"
    if source == "jetclass2":
        path = request.getfixturevalue("shared_data") / "JetClassII_example.root"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        spoiled = bytearray(content)
        for place in rng.integers(len(content), size=2):
            spoiled[place] ^= 1 << rng.integers(8)
        (tmp_path / "a.root").write_bytes(spoiled)
        try:
            convert_file(
                tmp_path / "a.root", tmp_path / "a.h5", load_recipe(source), overwrite=True
            )
        except DataError as err:
            messages.append(str(err))
        else:
            with JaggedFile(tmp_path / "a.h5") as file:
                assert np.isfinite(file.read().features).all()
        assert {p.name for p in tmp_path.iterdir()} <= {"a.root", "a.h5"}
    assert len(messages) > 5
    for message in messages:
        assert message.startswith(str(tmp_path / "a.root"))
        assert "\n" not in message
