"""Several processes train as one: who they are, what they share, how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference.jets import tiny_config
from safetensors.torch import load_file
from torch import distributed

from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, RunError
from jetssl_cli.objectives.ssfm import SSFM, SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.progress import progress
from jetssl_cli.runs import launch
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.launch import together
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.module import JetModule
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.processes import DeviceConfig, find
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.tracking import METRICS

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "reference" / "together.py"
JETS = 64
"""Of a batch and of the data: every batch holds all jets, on any number of devices."""


@pytest.fixture(autouse=True)
def _not_by_force(monkeypatch):
    """The process of the tests has time to hear that another one has failed."""
    monkeypatch.setattr(launch, "SECONDS_TO_FAIL", 200.0)


def test_alone():
    place = find(DeviceConfig(), {})
    assert (place.rank, place.ranks, place.starter, place.first) == (0, 1, None, True)


def test_the_place_among_the_processes_of_torchrun():
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    for devices in (4, "auto"):
        place = find(DeviceConfig(devices=devices, nodes=2), environment)
        assert (place.rank, place.devices, place.ranks, place.first) == (5, 4, 8, False)
        assert place.starter == "torchrun"
    with pytest.raises(ConfigError, match=r"torchrun has started 8 processes; .* need 4"):
        find(DeviceConfig(devices=2, nodes=2), environment)


def test_the_place_among_the_processes_of_srun():
    environment = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}
    place = find(DeviceConfig(devices="auto", nodes=2), environment)
    assert (place.rank, place.devices, place.starter) == (3, 2, "srun")
    alone = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}  # a batch script, without srun
    assert find(DeviceConfig(devices=2), alone).starter is None


def test_several_machines_need_torchrun_or_srun():
    with pytest.raises(ConfigError, match=r"train\.nodes = 2: .* torchrun or srun"):
        find(DeviceConfig(nodes=2), {})


def test_a_batch_is_shared_evenly_or_not_at_all():
    place = find(DeviceConfig(devices=3), {})
    assert place.jets_at_a_time(252, 2) == 42
    with pytest.raises(ConfigError, match=r"batch_size = 250: .* multiple of 3 .* such as 252"):
        place.jets_at_a_time(250, 1)
    with pytest.raises(ConfigError, match=r"batch_size = 250: .* multiple of 12 .*accumulate = 4"):
        place.jets_at_a_time(250, 4)


def test_only_the_first_process_reports(monkeypatch, capsys):
    for number, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", number)
        with progress("work", 1, "steps") as advance:
            advance(1)
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_what_an_earlier_run_has_done_says_nothing_of_the_rate(monkeypatch, capsys):
    clock = iter((0.0, 5.0, 20.0, 40.0, 40.0, 40.0)).__next__
    monkeypatch.setattr("jetssl_cli.progress.time.monotonic", clock)
    with progress("work", 1000, "steps") as advance:
        advance(500, earlier=True)
        advance(100)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "work: 600/1,000 steps, 2.5 steps/s, 0:01:20 left"
    assert told[1] == "work: 600/1,000 steps, 2.5 steps/s, done in 0:00:40"


def data_config(jagged, **settings):
    usual = {"batch_size": JETS, "num_jets": JETS, "max_constituents": 12, "num_val_jets": 24}
    files = {"train": (jagged / "train.h5",), "val": (jagged / "val.h5",)}
    return DataConfig(**(files | usual | settings))


def train_config(**settings):
    usual = {"steps": 6, "log_every": 1, "val_every": 3, "probe_every": 2, "precision": "32"}
    return TrainConfig(**(usual | settings))


def run_pretrain(jagged, out, data=None, **train):
    return pretrain(
        PretrainConfig(
            out=out,
            objective=SSFMConfig(time_features=4),
            encoder=tiny_config(),
            data=data_config(jagged, **(data or {})),
            optim=OptimConfig(lr=3e-3),
            train=train_config(**train),
            tracking=False,
        )
    )


def run_finetune(jagged, out, backbone, **train):
    """Without dropout, so that nothing is left to chance."""
    pool = PoolConfig(width=8, heads=2, dropout=0.0)
    return finetune(
        FinetuneConfig(
            out=out,
            backbone=backbone,
            encoder=tiny_config(),
            objective=SupervisedConfig(pool=pool),
            data=data_config(jagged),
            optim=OptimConfig(lr=3e-3, weight_decay=0.01),
            train=train_config(**train),
            tracking=False,
        )
    )


@pytest.fixture(scope="module")
def backbone(jagged, tmp_path_factory):
    return run_pretrain(jagged, tmp_path_factory.mktemp("runs") / "pretrained", steps=1)


@pytest.fixture(scope="module")
def alone(jagged, backbone, tmp_path_factory):
    return run_finetune(jagged, tmp_path_factory.mktemp("runs") / "alone", backbone)


def metrics(run):
    clock = ("time", "train/jets_per_second")
    rows = [json.loads(row) for row in (run / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def agree(run, other):
    """Both runs measured the same and learned the same (six steps of 0.003 lead far away)."""
    assert len(metrics(run)) == len(metrics(other))
    for row, wanted in zip(metrics(run), metrics(other), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert (weights[key] - value).abs().max() < 1e-4, key


def test_a_batch_in_parts_is_the_batch(jagged, backbone, alone, tmp_path):
    agree(run_finetune(jagged, tmp_path / "run", backbone, accumulate=4), alone)


def test_two_processes_are_one_device_with_the_batch(jagged, backbone, alone, tmp_path, capfd):
    before = dict(os.environ)
    two = run_finetune(jagged, tmp_path / "two", backbone, devices=2, accumulate=2)
    agree(two, alone)
    said = capfd.readouterr().err.splitlines()
    assert all(line.startswith("finetune two: ") for line in said)
    assert sum("done in" in line for line in said) == 1
    assert dict(os.environ) == before
    assert not distributed.is_initialized()


def torchrun(jagged, tmp_path, *overrides, **environment):
    words = ["--nproc-per-node", "2", SCRIPT, jagged / "train.h5", jagged / "val.h5", "two"]
    torchrun = Path(sys.executable).with_name("torchrun")
    return subprocess.run(
        [str(torchrun), *map(str, words), "train.devices=2", *overrides],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


SAME = (
    f"data.batch_size={JETS}",
    f"data.num_jets={JETS}",
    "data.num_val_jets=200",
    "train.steps=6",
)


def test_processes_with_different_numbers_of_hidden_constituents(jagged, tmp_path):
    """A global mean is no mean of means; the probe learns the same as well."""
    done = torchrun(jagged, tmp_path, *SAME)
    assert done.returncode == 0, done.stderr
    words = [sys.executable, SCRIPT, jagged / "train.h5", jagged / "val.h5", "one", *SAME]
    subprocess.run(list(map(str, words)), cwd=tmp_path, check=True)
    agree(tmp_path / "two", tmp_path / "one")


def test_a_failure_of_one_process_under_torchrun_ends_both(jagged, tmp_path):
    done = torchrun(jagged, tmp_path, *SAME, FAILING="1")
    assert done.returncode != 0
    assert "RuntimeError: a fault" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_killed_process_ends_the_run_with_a_message(jagged, tmp_path, monkeypatch):
    calls = []
    right = SSFM.loss

    def loss(self, batch, rng):
        calls.append(1)
        if len(calls) == 3:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
            found = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children.split()}
            (other,) = (pid for pid, words in found.items() if "jetssl_cli.runs.process" in words)
            os.kill(other, signal.SIGKILL)
        return right(self, batch, rng)

    monkeypatch.setattr(SSFM, "loss", loss)
    with pytest.raises(RunError, match="process 1 of the run failed: it was killed"):
        run_pretrain(jagged, tmp_path / "run", devices=2)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_loss_that_is_not_finite_ends_all(jagged, tmp_path, monkeypatch):
    """It is not finite in the first process alone, and all of them stop."""
    right = SSFM.loss
    monkeypatch.setattr(
        SSFM,
        "loss",
        lambda self, *args: {k: v * float("nan") for k, v in right(self, *args).items()},
    )
    with pytest.raises(RunError, match="non-finite at step 0; nothing was saved"):
        run_pretrain(jagged, tmp_path / "run", devices=2, steps=1_000_000)


TINY = ("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.registers=2")


@pytest.fixture
def words(jagged):
    data = ("--train", jagged / "train.h5", "--val", jagged / "val.h5", "--out", "run")
    return ("pretrain", "--method", "ssfm", "--size", "tiny", *data, "tracking=false", *TINY)


def test_two_processes_of_the_command_end_together_in_time(jetssl, tmp_path, words):
    short = ("data.batch_size=20", "train.log_every=1")
    done = jetssl(*words, "--devices", 2, "--max-time", "3s", *short)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run: pretrained\n"
    assert "done in" in done.stderr.splitlines()[-1]
    rows = metrics(tmp_path / "run")
    assert "val/loss" in rows[-1]
    assert rows[-1]["step"] == rows[-2]["step"] > 1


def test_a_process_that_fails_before_it_joins_does_not_hang_the_other(tmp_path, words):
    """The first process waits for it, deep in a library, and is ended by force."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    os.write(2, b'error: no such device')\n"
        "    os._exit(1)\n"
    )
    done = subprocess.run(
        [str(Path(sys.executable).with_name("jetssl")), *map(str, words), "--devices", "2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "error: process 1 of the run failed: no such device"


def test_a_process_that_fails_before_it_gets_its_config(monkeypatch):
    monkeypatch.setattr(launch.sys, "executable", shutil.which("false"))
    monkeypatch.setattr(launch, "to_yaml", lambda _: time.sleep(0.5) or "seed: 1\n")
    told = "process 1 of the run failed: it was killed"
    place = find(DeviceConfig(devices=2), {})
    with pytest.raises(RunError, match=told), together(TrainConfig(), place, lambda: None):
        pass


def test_a_process_whose_first_one_is_gone_before_it_has_written_the_config():
    words = [sys.executable, "-m", "jetssl_cli.runs.process"]
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    done = subprocess.run(words, **pipes, timeout=100, check=False)
    assert done.returncode == 1


def test_an_error_says_which_process_has_it(tmp_path):
    """The folder that the first process has made is not in its way."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    words = ["pretrain", "--method", "ssfm", "--train", "no.h5", "--val", "no.h5", "--out", "run"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("jetssl")), *words, "--devices", "2"],
        cwd=tmp_path,
        env={**os.environ, "TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error (process 1): no.h5: no such file\n"


def test_the_command_refuses_a_batch_that_cannot_be_shared(jetssl, tmp_path, words):
    done = jetssl(*words, "--devices", 3)
    assert done.returncode == 2
    assert "error: data.batch_size = 250: must be a multiple of 3" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_process_of_a_few_seeds_draws_what_another_draws():
    """The first one draws from the seed itself, as the only process of a run does."""
    drawn = {}
    for seed in range(4):
        for rank in range(4):
            process = SimpleNamespace(
                train_cfg=TrainConfig(seed=seed),
                global_rank=rank,
                device=torch.device("cpu"),
            )
            with torch.random.fork_rng():
                JetModule.setup(process, "fit")
            drawn[seed, rank] = tuple(torch.rand(4, generator=process.rng).tolist())
    assert len(set(drawn.values())) == 16
    alone = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert drawn[3, 0] == tuple(alone.tolist())
