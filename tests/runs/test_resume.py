"""A training that was stopped goes on as if it had not been, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace

import h5py
import pytest
import torch
from reference.jets import tiny_config
from runs.test_training import data_config, metrics, same_weights, train_config, weights

from jetssl_cli.data import facts
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, DataError, RunError
from jetssl_cli.objectives.dino import DINOConfig
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs import checkpoint, launch, tracking, weightfile
from jetssl_cli.runs.budget import Budget
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.keeper import OWN
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.processes import Hosts
from jetssl_cli.runs.signals import Stopped
from jetssl_cli.runs.snapshot import CheckpointConfig, Snapshots

pytestmark = pytest.mark.slow

STEPS = 8
METHODS = {"ssfm": SSFMConfig(time_features=4), "dino": DINOConfig(prototypes=8, bottleneck=4)}


def config(jagged, out, method="ssfm", data=None, checkpoint=None, **train):
    return PretrainConfig(
        out=out,
        objective=METHODS[method],
        encoder=tiny_config(),
        data=data_config(jagged, **(data or {})),
        optim=OptimConfig(lr=3e-3),
        train=train_config(
            **{"steps": STEPS, "probe_every": 2, "precision": "32", "val_every": 3} | train
        ),
        checkpoint=CheckpointConfig(**(checkpoint or {})),
        tracking=False,
    )


def resumed(cfg, **changes):
    return cfg.model_copy(update={"resume": True, **changes})


@pytest.fixture
def stop(monkeypatch):
    """Let a signal come in a step, as the batch system sends it."""
    step = Budget.step

    def after(steps, number=signal.SIGTERM):
        def signalled(budget):
            step(budget)
            if budget.steps == steps:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Budget, "step", signalled)

    return after


@pytest.fixture(scope="module")
def whole(jagged, tmp_path_factory):
    """A run that nothing has stopped."""
    return pretrain(config(jagged, tmp_path_factory.mktemp("runs") / "whole"))


def same_runs(one, other):
    assert same_weights(weights(one), weights(other))
    assert same_weights(weights(one, "backbone"), weights(other, "backbone"))
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize("steps", [1, 3, 5])  # 3 is followed by a validation
def test_a_stopped_pretraining_goes_on_bit_for_bit(whole, jagged, tmp_path, stop, steps):
    cfg = config(jagged, tmp_path / "run")
    stop(steps)
    with pytest.raises(Stopped, match=f"stopped after step {steps}; --resume") as stopped:
        pretrain(cfg)
    assert stopped.value.code == 143
    assert not (cfg.out / "model.safetensors").exists()
    torch.manual_seed(99)  # whatever the generators hold
    same_runs(pretrain(resumed(cfg)), whole)
    assert not (cfg.out / "snapshots").exists()


def test_a_teacher_goes_on(jagged, tmp_path, stop):
    expected = pretrain(config(jagged, tmp_path / "whole", "dino"))
    cfg = config(jagged, tmp_path / "run", "dino")
    stop(4)
    with pytest.raises(Stopped):
        pretrain(cfg)
    same_runs(pretrain(resumed(cfg)), expected)


def test_stopped_twice_and_with_other_workers(whole, jagged, tmp_path, stop):
    cfg = config(jagged, tmp_path / "run")
    stop(2, signal.SIGUSR1)
    with pytest.raises(Stopped):
        pretrain(cfg)
    stop(5, signal.SIGINT)
    with pytest.raises(Stopped):
        pretrain(resumed(cfg))
    data = cfg.data.model_copy(update={"workers": 1})
    same_runs(pretrain(resumed(cfg, data=data)), whole)


def test_accumulated_batches(jagged, tmp_path, stop):
    expected = pretrain(config(jagged, tmp_path / "whole", accumulate=2))
    cfg = config(jagged, tmp_path / "run", accumulate=2)
    stop(4)
    with pytest.raises(Stopped):
        pretrain(cfg)
    same_runs(pretrain(resumed(cfg)), expected)


def finetuning(jagged, backbone, out):
    """Dropout draws from torch's own generator."""
    return FinetuneConfig(
        out=out,
        backbone=backbone,
        encoder=tiny_config(),
        objective=SupervisedConfig(pool=PoolConfig(width=8, heads=2)),
        data=data_config(jagged),
        train=train_config(steps=STEPS, precision="32"),
        tracking=False,
    )


@pytest.fixture(scope="module")
def finetuned(whole, jagged, tmp_path_factory):
    """A finetuning that nothing has stopped."""
    return finetune(finetuning(jagged, whole, tmp_path_factory.mktemp("runs") / "finetuned"))


def test_a_finetuning_goes_on(whole, finetuned, jagged, tmp_path, stop):
    cfg = finetuning(jagged, whole, tmp_path / "run")
    stop(4)
    with pytest.raises(Stopped):
        finetune(cfg)
    found = finetune(resumed(cfg))
    assert same_weights(weights(found), weights(finetuned))
    assert metrics(found) == metrics(finetuned)


@pytest.fixture
def stop_in_validation(monkeypatch):
    """Let a signal come in the validation after step 3; the clock runs in the one that follows."""
    from jetssl_cli.runs.module import JetModule

    begin, again = JetModule.on_validation_start, JetModule._validate

    def signalled(module):
        begin(module)
        if module.budget.steps == 3 and not module.validation_due:
            os.kill(os.getpid(), signal.SIGTERM)

    def timed(module):
        assert module.budget._begin is not None
        again(module)

    monkeypatch.setattr(JetModule, "on_validation_start", signalled)
    monkeypatch.setattr(JetModule, "_validate", timed)


@pytest.mark.usefixtures("stop_in_validation")
def test_a_signal_in_a_validation(whole, jagged, tmp_path):
    cfg = config(jagged, tmp_path / "run")
    with pytest.raises(Stopped, match="after step 3"):
        pretrain(cfg)
    same_runs(pretrain(resumed(cfg)), whole)


@pytest.mark.usefixtures("stop_in_validation")
def test_a_signal_in_a_validation_of_a_finetuning(whole, finetuned, jagged, tmp_path):
    cfg = finetuning(jagged, whole, tmp_path / "run")
    with pytest.raises(Stopped, match="after step 3"):
        finetune(cfg)
    found = finetune(resumed(cfg))
    assert same_weights(weights(found), weights(finetuned))
    assert metrics(found) == metrics(finetuned)


def test_a_signal_in_the_last_step_changes_nothing(whole, jagged, tmp_path, stop):
    stop(STEPS)
    same_runs(pretrain(config(jagged, tmp_path / "run")), whole)


def test_a_second_interrupt_ends_it_at_once(jagged, tmp_path, stop):
    cfg = config(jagged, tmp_path / "run")
    stop(3, signal.SIGINT)
    interrupted = Budget.step

    def twice(budget):
        interrupted(budget)
        if budget.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    Budget.step = twice  # undone by ``stop``
    with pytest.raises(KeyboardInterrupt):
        pretrain(cfg)
    assert not (cfg.out / "snapshots").exists()


def killed(cfg, monkeypatch, steps):
    """Leave a run as SIGKILL leaves it after a step."""

    class Killed(BaseException):
        pass

    step = Budget.step

    def die(budget):
        step(budget)
        if budget.steps == steps:
            raise Killed

    monkeypatch.setattr(Budget, "step", die)
    with pytest.raises(Killed):
        pretrain(cfg)
    monkeypatch.undo()


def test_a_killed_run_goes_on_from_its_last_snapshot(whole, jagged, tmp_path, monkeypatch):
    cfg = config(jagged, tmp_path / "run", checkpoint={"every_steps": 2})
    killed(cfg, monkeypatch, 7)
    snapshots = Snapshots(cfg.out, cfg.checkpoint)
    names = [path.name for path in snapshots.files()]
    assert names == ["000000006.safetensors", "000000004.safetensors"]
    (snapshots.folder / ".000000007.safetensors.partial").touch()  # killed while it wrote
    same_runs(pretrain(resumed(cfg)), whole)
    assert not snapshots.folder.exists()


@pytest.mark.parametrize("saved", [0, 1])
def test_a_run_that_ended_while_its_weights_were_saved_is_not_complete(
    jagged, tmp_path, monkeypatch, saved
):
    often = {"checkpoint": {"every_steps": 3}, "keep": "best"}
    expected = pretrain(config(jagged, tmp_path / "whole", **often))
    save, calls = weightfile.save, []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) > saved:
            raise RunError("killed")
        save(*arguments)

    cfg = config(jagged, tmp_path / "run", **often)
    with monkeypatch.context() as patch:
        patch.setattr(weightfile, "save", fail)
        with pytest.raises(RunError, match="killed"):
            pretrain(cfg)
    assert not checkpoint.is_complete(cfg.out)
    same_runs(pretrain(resumed(cfg)), expected)


def test_without_a_snapshot_it_begins_anew(whole, jagged, tmp_path, monkeypatch):
    cfg = config(jagged, tmp_path / "run")
    killed(cfg, monkeypatch, 4)
    same_runs(pretrain(resumed(cfg)), whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_snapshot_is_passed_over(whole, jagged, tmp_path, monkeypatch, capsys, damage):
    cfg = config(jagged, tmp_path / "run", checkpoint={"every_steps": 2})
    killed(cfg, monkeypatch, 7)
    last = Snapshots(cfg.out, cfg.checkpoint).files()[0]
    data = bytearray(last.read_bytes())
    data[-100] ^= 1
    last.write_bytes({"cut": data[:-50], "flipped": data, "empty": b""}[damage])
    same_runs(pretrain(resumed(cfg)), whole)
    assert "going on from 000000004" in capsys.readouterr().err


def test_a_damaged_snapshot_is_not_kept_in_the_place_of_an_earlier_one(
    whole, jagged, tmp_path, monkeypatch
):
    cfg = config(jagged, tmp_path / "run", checkpoint={"every_steps": 2})
    killed(cfg, monkeypatch, 7)
    last = Snapshots(cfg.out, cfg.checkpoint).files()[0]
    last.write_bytes(b"")
    one = CheckpointConfig(every_steps=5, keep=1)
    killed(resumed(cfg, checkpoint=one), monkeypatch, 6)
    names = [path.name for path in Snapshots(cfg.out, one).files()]
    assert names == ["000000005.safetensors"]
    same_runs(pretrain(resumed(cfg)), whole)


def test_if_all_are_damaged_nothing_is_lost(jagged, tmp_path, monkeypatch):
    cfg = config(jagged, tmp_path / "run", checkpoint={"every_steps": 2, "keep": 1})
    killed(cfg, monkeypatch, 5)
    (last,) = Snapshots(cfg.out, cfg.checkpoint).files()
    last.write_bytes(last.read_bytes()[:-9])
    lines = (cfg.out / "metrics.jsonl").read_text()
    with pytest.raises(RunError, match="not a readable snapshot"):
        pretrain(resumed(cfg))
    assert (cfg.out / "metrics.jsonl").read_text() == lines


def test_resuming_begins_a_run_that_is_not_there_and_leaves_a_complete_one(whole, jagged, tmp_path):
    cfg = resumed(config(jagged, tmp_path / "run"))
    same_runs(pretrain(cfg), whole)
    before = {path: path.stat().st_mtime_ns for path in cfg.out.iterdir()}
    assert pretrain(cfg) == cfg.out
    assert {path: path.stat().st_mtime_ns for path in cfg.out.iterdir()} == before


def test_a_complete_run_of_other_data_is_not_taken_for_one_of_these(whole, jagged):
    files = {"train": (jagged / "test.h5",)}
    cfg = resumed(config(jagged, whole, data=files))
    with pytest.raises(ConfigError, match=r"was made with other jets than those in .*test\.h5"):
        pretrain(cfg)


@pytest.fixture
def many(jagged, tmp_path, stop, monkeypatch):
    """A run over several files that was stopped, as another process sees it that goes on."""
    monkeypatch.setattr(facts, "SECONDS_UNTOUCHED", 0.0)
    files = [tmp_path / "data" / f"{index}.h5" for index in range(6)]
    files[0].parent.mkdir()
    for path in files:
        shutil.copy(jagged / "train.h5", path)
    cfg = config(jagged, tmp_path / "run", data={"train": tuple(files)})
    stop(4)
    with pytest.raises(Stopped):
        pretrain(cfg)
    stop(0)
    facts._memory.cache_clear()
    return cfg


def test_files_that_are_known_are_not_read_before_the_first_batch(many, monkeypatch):
    opened, begun = [], []
    init, begin = JaggedFile.__init__, DataConfig.endless

    def noted(file, path):
        opened.append(path)
        init(file, path)

    def before_the_first_batch(*args):
        begun.extend(opened)
        return begin(*args)

    monkeypatch.setattr(JaggedFile, "__init__", noted)
    monkeypatch.setattr(DataConfig, "endless", before_the_first_batch)
    pretrain(resumed(many))
    assert begun
    assert set(begun) <= {many.data.train[0], many.data.val[0]}
    assert set(opened) >= set(many.data.train)
    opened.clear()
    pretrain(resumed(many))  # it is complete
    assert not opened


@pytest.mark.parametrize("write", [True, False])
def test_a_known_file_that_is_changed_within_its_size_and_date_is_noticed(many, write):
    path = many.data.train[4]
    before = path.stat()
    time.sleep(0.05)  # the clock of the file system goes on
    if write:
        with h5py.File(path, "r+") as file:
            file.attrs.modify("recipe", file.attrs["recipe"].swapcase())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if write:
        with pytest.raises(DataError, match=r"4\.h5: is not the file that the run has read"):
            pretrain(resumed(many))
    else:
        pretrain(resumed(many))


def test_other_data_are_refused(jagged, tmp_path, stop):
    cfg = config(jagged, tmp_path / "run")
    stop(4)
    with pytest.raises(Stopped):
        pretrain(cfg)
    files = {"train": (jagged / "val.h5",), "val": (jagged / "val.h5",)}
    with pytest.raises(DataError, match="it had sizes"):
        pretrain(resumed(cfg, data=cfg.data.model_copy(update=files)))


def stopped(jagged, tmp_path, stop):
    """A run after three steps, and its snapshots."""
    cfg = config(jagged, tmp_path / "run")
    stop(3)
    with pytest.raises(Stopped):
        pretrain(cfg)
    return cfg, Snapshots(cfg.out, cfg.checkpoint)


def test_other_arithmetic_is_told(whole, jagged, tmp_path, stop, capsys):
    cfg, snapshots = stopped(jagged, tmp_path, stop)
    found = snapshots.latest()
    snapshots.write(replace(found, facts={**found.facts, "arithmetic": "bf16-mixed"}))
    same_runs(pretrain(resumed(cfg)), whole)
    assert "goes on in 32; it was in bf16-mixed" in capsys.readouterr().err


def test_processes_that_see_other_snapshots_are_refused(jagged, tmp_path, stop, monkeypatch):
    cfg, _ = stopped(jagged, tmp_path, stop)
    monkeypatch.setattr(Hosts, "first", lambda _, value: 5.0 if value == 3 else value)
    with pytest.raises(RunError, match="process 0 sees step 3 as the last, the first one 5"):
        pretrain(resumed(cfg))


def test_a_cut_schema_is_told_before_the_training_goes_on(jagged, tmp_path, stop):
    cfg, _ = stopped(jagged, tmp_path, stop)
    (cfg.out / checkpoint.SCHEMA).write_text("")
    with pytest.raises(ConfigError, match=r"schema\.yaml"):
        pretrain(resumed(cfg))


@pytest.mark.parametrize("encoded", [True, False])
def test_a_finetuning_goes_on_with_the_backbone_that_it_was_begun_with(
    whole, jagged, tmp_path, stop, encoded
):
    cfg = FinetuneConfig(
        out=tmp_path / "run",
        backbone=whole,
        encoder=tiny_config(),
        objective=SupervisedConfig(frozen=True, pool=PoolConfig(width=8, heads=2)),
        data=data_config(jagged, in_memory=True),
        train=train_config(steps=STEPS, precision="32"),
        cache_embeddings=encoded,
        tracking=False,
    )
    stop(4)
    with pytest.raises(Stopped):
        finetune(cfg)
    other = pretrain(config(jagged, tmp_path / "other", steps=1))
    with pytest.raises(RunError, match="the backbone is not the one that the run was begun with"):
        finetune(cfg.model_copy(update={"resume": True, "backbone": other}))
    finetune(cfg.model_copy(update={"resume": True}))


def test_another_kind_of_device_is_refused(jagged, tmp_path, stop):
    """Random numbers of a GPU, whose generator has a state of 16 bytes, are none of a CPU."""
    cfg, snapshots = stopped(jagged, tmp_path, stop)
    found = snapshots.latest()
    gpu = {**found.tensors, OWN: torch.zeros(1, 16, dtype=torch.uint8)}
    snapshots.write(replace(found, tensors=gpu))
    with pytest.raises(RunError, match="was on another kind of device than cpu"):
        pretrain(resumed(cfg))


def test_two_processes_stop_together_and_go_on(jagged, tmp_path, stop, monkeypatch):
    """One of them hears the signal; each has random numbers of its own."""
    monkeypatch.setattr(launch, "SECONDS_TO_FAIL", 200.0)  # then this process ends by force
    expected = pretrain(config(jagged, tmp_path / "whole", devices=2))
    often = {"every_steps": 2, "every_minutes": None, "keep": 9}
    cfg = config(jagged, tmp_path / "run", devices=2, checkpoint=often)
    stop(5)
    with pytest.raises(Stopped, match="after step 5"):
        pretrain(cfg)
    names = [path.stem for path in Snapshots(cfg.out, cfg.checkpoint).files()]
    assert [int(name) for name in names] == [5, 4, 2]
    same_runs(pretrain(resumed(cfg)), expected)


def test_a_job_is_put_back_into_the_queue(jagged, tmp_path, stop, monkeypatch, capsys):
    """By SIGUSR1 alone, and if there is no way to, the training has stopped all the same."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for name, number in (("term", signal.SIGTERM), ("usr1", signal.SIGUSR1)):
        stop(2, number)
        with pytest.raises(Stopped):
            pretrain(config(jagged, tmp_path / name))
    assert (tmp_path / "said").read_text() == "requeue 17\n"
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Stopped):
        pretrain(config(jagged, tmp_path / "again"))
    assert "job 17 could not be put back into the queue" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # MLflow and sqlalchemy warn of their own affairs
def test_a_run_that_goes_on_is_one_run_of_mlflow(jagged, tmp_path, stop, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr(tracking, "SECONDS_TO_FINISH", 200.0)  # to make a database takes seconds
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    cfg = config(jagged, tmp_path / "run").model_copy(update={"tracking": True})
    stop(4)
    with pytest.raises(Stopped):
        pretrain(cfg)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("jetssl").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"
    pretrain(resumed(cfg))
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    steps = {entry.step for entry in client.get_metric_history(run.info.run_id, "train/loss")}
    assert steps == set(range(1, STEPS + 1))
