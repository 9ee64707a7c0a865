"""``jetssl workflow --profile slurm`` on a real SLURM: one node, which is this machine.

Needs Debian's packages ``slurm-wlm`` and ``munge``, and root to start their daemons.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "sinfo")
SYSTEM = "/usr/sbin:/sbin"
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def unable() -> str | None:
    """Why there can be no SLURM here."""
    path = f"{os.environ['PATH']}:{SYSTEM}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "the daemons of SLURM are started by root"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "snakemake-executor-plugin-slurm is not installed"
    return None


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, two)]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SLURM of one node; gives the environment of its users."""
    if reason := unable():
        pytest.skip(reason)
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    conf.write_text(CONF.format(folder=folder, host=host, ports=free_ports()))
    path = f"{os.environ['PATH']}:{SYSTEM}"
    srun = folder / "srun"  # what Snakemake calls inside a job, where it drops SLURM_CONF
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun", path=path)} "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{path}",
        "SLURM_CONF": str(conf),
        "OMP_NUM_THREADS": "1",
    }
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--key-file={key}", f"--pid-file={folder}/munged.pid"]
    munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    daemons = (munged, ["slurmctld", "-D", "-f", str(conf)], ["slurmd", "-D", "-f", str(conf)])
    with ExitStack() as stack:
        for command in daemons:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            if command is munged:
                wait_for((folder / "munge.socket").exists, "munged")
        wait_for(lambda: "idle" in ask("sinfo", "--noheader", "-o", "%T", env=environment), "SLURM")
        yield environment
        ask("scancel", "--user=root", env=environment)
        wait_for(lambda: not ask("squeue", "--noheader", env=environment), "the end of all jobs")


def ask(*command: str, env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def wait_for(what: object, name: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{name} has not come"
        time.sleep(0.2)


@pytest.mark.slow
def test_from_jets_to_the_report_though_slurm_ends_a_training_on_the_way(
    slurm: dict[str, str], samples: Path, jagged: Path, tmp_path: Path
) -> None:
    """The jets of two splits are there already, as a workflow leaves them; the test's are not."""
    given, out = tmp_path / "JetClass", tmp_path / "w"
    given.mkdir()
    (given / "test_20M").symlink_to(samples / "jetclass" / "test")
    (out / "data").mkdir(parents=True)
    for split in ("train", "val"):
        (out / "data" / f"{split}.converted").touch()
        shutil.copyfile(jagged / f"{split}.h5", out / "data" / f"{split}.h5")
    run = out / "runs" / "mpm-seed0"
    short = "data.batch_size=20,tracking=false,train.val_every"
    words = (
        "--profile=slurm", "--methods=mpm", "--seeds=1", "--budget=2000", "--out=w",
        f"--jetclass={given}", "slurm.partition=main", "slurm.memory=500MB", "data_jobs=1",
        f"pretrain.settings=[{short}=100]", "finetune.budget=60", f"finetune.settings=[{short}=2]",
        "snakemake=[--slurm-status-command=squeue,--slurm-init-seconds-before-status-checks=1,"
        "--latency-wait=10]",
    )  # fmt: skip
    with (tmp_path / "out").open("w") as log:
        command = [sys.executable, "-m", "jetssl_cli", "workflow", *words]
        process = subprocess.Popen(command, cwd=tmp_path, env=slurm, stdout=log, stderr=log)
        try:
            metrics = run / "metrics.jsonl"
            wait_for(lambda: metrics.exists() or process.poll() is not None, "a training", 900)
            assert process.poll() is None, (tmp_path / "out").read_text()
            stopped = time.time()
            jobs = ask("squeue", "--states=running", "--noheader", "-o", "%i %k", env=slurm)
            (training,) = [line.split()[0] for line in jobs.splitlines() if "pretrain" in line]
            ask("scancel", training, env=slurm)
            process.wait(900)
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, (tmp_path / "out").read_text()
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert (rows[0]["step"], rows[-1]["step"]) == (1, 100)
    assert rows[0]["time"] < stopped < rows[-1]["time"]
    states = ask("squeue", "--states=all", "--noheader", "-o", "%T", env=slurm).split()
    assert sorted(states) == ["CANCELLED"] + ["COMPLETED"] * 12
    assert "data:image/svg+xml" in (out / "report.html").read_text()
    table = json.loads((out / "tables" / "table.json").read_text())
    kinds = ("from-scratch", "mpm-frozen", "mpm-full", "random")
    assert sorted(Path(row["run"]).name for row in table) == [f"{kind}-seed0" for kind in kinds]
