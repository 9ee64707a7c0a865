"""What goes wrong around a running training: readers killed, files changed, a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs.test_resume import config, resumed, same_runs

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.write import write
from jetssl_cli.errors import DataError, RunError
from jetssl_cli.runs.budget import Budget
from jetssl_cli.runs.pretrain import pretrain
from jetssl_cli.runs.signals import Stopped
from jetssl_cli.runs.snapshot import Snapshots

pytestmark = pytest.mark.slow

FEW = {"num_jets": 48}
"""Three batches are an epoch, so that the file is read again and again."""
TWO = {"every_steps": 2}


@pytest.fixture
def after(monkeypatch):
    """Let something happen after a step."""
    step = Budget.step

    def then(steps, happens):
        def stepped(budget):
            step(budget)
            if budget.steps == steps:
                happens()

        monkeypatch.setattr(Budget, "step", stepped)

    return then


@pytest.fixture
def data(jagged, tmp_path):
    """A folder of data files, to spoil."""
    for name in ("train.h5", "val.h5"):
        shutil.copy(jagged / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def whole(jagged, tmp_path_factory):
    """A run that nothing has disturbed."""
    return pretrain(config(jagged, tmp_path_factory.mktemp("runs") / "whole", data=FEW))


def write_others(path):
    """Put as many other jets in the place of a file."""
    with JaggedFile(path) as file:
        jets = file.read()
        backwards = jets.take(np.arange(len(jets))[::-1])
        with write(path, file.recipe, file.sources, precision=file.precision) as writer:
            writer.append(backwards)


def stopped(cfg, after):
    after(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        pretrain(cfg)
    after(0, lambda: None)
    return resumed(cfg)


def kill_a_reader():
    """SIGKILL, as the kernel sends it where memory is short."""
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if b"spawn_main" in Path("/proc", child, "cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
            time.sleep(1)
            return
    pytest.fail("no process reads")


def test_a_reading_process_that_is_killed(whole, jagged, tmp_path, after):
    cfg = config(jagged, tmp_path / "run", data=FEW | {"workers": 2}, checkpoint=TWO)
    after(5, kill_a_reader)
    start = time.monotonic()
    told = r"a process that reads data has ended: \(pid \d+\) is killed by signal: Killed; --resume"
    with pytest.raises(RunError, match=told) as error:
        pretrain(cfg)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 200
    after(0, lambda: None)
    same_runs(pretrain(resumed(cfg)), whole)


def test_a_signal_to_all_processes_stops_the_training_alone(jagged, tmp_path):
    """As torchrun and shells send it to the group, and some batch systems to each process."""
    files = ("--train", jagged / "train.h5", "--val", jagged / "val.h5", "--out", "run")
    settings = ("data.workers=1", "data.batch_size=8", "data.num_val_jets=8", "train.log_every=1")
    words = ("pretrain", "--method", "mpm", "--size", "tiny", *files, *settings, "tracking=false")
    process = subprocess.Popen(
        [sys.executable, "-m", "jetssl_cli", *map(str, words)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run, deadline = tmp_path / "run", time.monotonic() + 200

    def wait_for(steps):
        while not (rows := _lines_of(run / "metrics.jsonl")) or rows < steps:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_for(1)
    readers = [
        int(child)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if b"spawn_main" in Path("/proc", child, "cmdline").read_bytes()
    ]
    assert len(readers) == 1
    os.kill(readers[0], signal.SIGUSR1)
    wait_for(_lines_of(run / "metrics.jsonl") + 5)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "run: stopped after step" in said
    assert len(list((run / "snapshots").iterdir())) == 1


def _lines_of(path):
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("name", ["train.h5", "val.h5"])
def test_other_jets_before_it_goes_on(data, after, name):
    cfg = stopped(config(data, data / "run", data=FEW), after)
    write_others(data / name)
    with pytest.raises(DataError, match=f"{name}: is not the file that the run has read") as error:
        pretrain(cfg)
    assert "\n" not in str(error.value)
    assert Snapshots(cfg.out, cfg.checkpoint).files()


def test_the_same_jets_elsewhere_and_of_another_date(whole, data, after):
    cfg = stopped(config(data, data / "run", data=FEW), after)
    moved = (data / "train.h5").rename(data / "moved.h5")
    os.utime(moved, (1, 1))
    files = cfg.data.model_copy(update={"train": (moved,)})
    same_runs(pretrain(cfg.model_copy(update={"data": files})), whole)


@pytest.mark.parametrize("name", ["train.h5", "val.h5"])
@pytest.mark.parametrize("spoil", ["cut", "others", "gone"])
def test_a_file_that_changes_under_a_training(whole, jagged, data, after, name, spoil):
    path = data / name
    happens = {
        "cut": lambda: os.truncate(path, path.stat().st_size // 2),
        "others": lambda: write_others(path),
        "gone": path.unlink,
    }
    cfg = config(data, data / "run", data=FEW, checkpoint=TWO)
    after(4, happens[spoil])
    with pytest.raises(DataError, match=f"{path}: ") as error:
        pretrain(cfg)
    assert "\n" not in str(error.value)
    shutil.copy(jagged / name, path)
    after(0, lambda: None)
    same_runs(pretrain(resumed(cfg)), whole)


def test_a_file_that_is_touched_or_copied_anew_changes_nothing(whole, jagged, data, after):
    def again():
        for name in ("train.h5", "val.h5"):
            shutil.copy(jagged / name, data / "copy")
            (data / "copy").replace(data / name)

    after(4, again)
    same_runs(pretrain(config(data, data / "run", data=FEW)), whole)


def test_what_a_reading_process_finds_is_told_in_one_line(data, after):
    path = data / "train.h5"
    cfg = config(data, data / "run", data=FEW | {"workers": 1}, steps=40)
    after(2, lambda: write_others(path))
    with pytest.raises(DataError) as error:
        pretrain(cfg)
    assert str(error.value).startswith(f"{path}: was changed while the run reads it")
    assert "\n" not in str(error.value)


def test_a_full_disk_costs_a_warning(whole, jagged, tmp_path, capsys):
    """A limit on the size of files does what a full disk does: a write ends in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (whole / "model.safetensors").stat().st_size * 3 // 2
    cfg = config(jagged, tmp_path / "run", data=FEW, checkpoint=TWO)
    snapshots = Snapshots(cfg.out, cfg.checkpoint)
    seen = []
    step = Budget.step

    def stepped(budget):
        if budget.steps == 3:
            (only,) = snapshots.files()
            assert only.stat().st_size > room
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        seen.append(sorted(path.name for path in cfg.out.glob("snapshots/*")))
        step(budget)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "step", stepped)
        try:
            pretrain(cfg)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert seen[-1] == ["000000002.safetensors"]
    error = capsys.readouterr().err
    for steps in (4, 6):
        told = f"warning: no snapshot after step {steps}: {cfg.out}/snapshots/00000000{steps}"
        assert f"{told}.safetensors: cannot be written: File too large\n" in error
    same_runs(cfg.out, whole)
