"""``jetssl workflow``: from nothing, or from JetClass, to the headline table.

``workflow/Snakefile`` says which command makes what of what; Snakemake runs what is missing, here
or on SLURM. Its settings are those of ``workflow_config.py``. What is done is kept, and a
training that was stopped goes on where it stood.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jetssl_cli.config import Layer, Strict, load, to_yaml
from jetssl_cli.errors import ConfigError, RunError, reason
from jetssl_cli.runs.lock import locked
from jetssl_cli.safeyaml import read_yaml
from jetssl_cli.scores import snakemake
from jetssl_cli.scores.workflow_config import JETCLASS, WorkflowConfig

CONFIG = "workflow.yaml"
"""The resolved settings, in the folder of a workflow."""
REPORT = "report.html"
TIMES = "times"
"""Folder of Snakemake's benchmarks: ``times/RULE/JOB.tsv``."""
RULES = (
    "simulate", "convert", "merge", "pretrain", "finetune", "baseline", "export", "evaluate",
    "budgets",
)  # fmt: skip
"""Of the Snakefile, in the order of the data."""
JOBS = re.compile(r"^(\w+) +(\d+)$", re.MULTILINE)
"""A line of what Snakemake says of the jobs to come."""
PICTURES = (".png", ".svg")


class RuleTime(Strict):
    """What the jobs of a rule have taken, as far as Snakemake has measured it."""

    rule: str
    jobs: int
    seconds: float
    """Of all of them together."""

    @property
    def mean(self) -> float:
        """Seconds of one job."""
        return self.seconds / self.jobs


class WorkflowReport(Strict):
    """What a workflow has made."""

    report: Path | None
    """The page with tables and plots, unless other files were asked for."""
    times: tuple[RuleTime, ...]


def workflow(cfg: WorkflowConfig) -> WorkflowReport:
    """Make what is missing.

    Raises:
        ConfigError: Snakemake or SLURM is not there, or ``out`` holds another workflow.
        RunError: a job failed, or another workflow runs in this folder.
        Stopped: a signal has come; the jobs have ended as well.
    """
    _require(cfg)
    with locked(cfg.out) as hand_over:
        cfg = _as_begun(cfg)
        (cfg.out / CONFIG).write_text(to_yaml(cfg), encoding="utf-8")
        command = snakemake.command(cfg, cfg.out, cfg.out / CONFIG)
        code = snakemake.run(command, cfg.out, hand_over)
    if code:
        raise RunError(
            f"{cfg.out}: a part has failed, see above and {cfg.out / 'logs'}; the same command "
            "tries again what is missing"
        )
    page = cfg.out / REPORT
    return WorkflowReport(report=page if page.exists() else None, times=times(cfg.out))


def dry_run(cfg: WorkflowConfig) -> dict[str, int]:
    """How many jobs of each rule would be run; nothing is written.

    Raises:
        ConfigError: Snakemake is not there, or ``out`` holds another workflow.
        RunError: Snakemake cannot say.
    """
    (*_, listed) = _asked(cfg, "--dry-run").rpartition("Job stats:")
    found = {rule: int(number) for rule, number in JOBS.findall(listed)}
    return {rule: found[rule] for rule in _in_order(found)}


def draw(cfg: WorkflowConfig, file: Path) -> None:
    """Draw all jobs and what they wait for, as .dot, .png or .svg; a picture needs Graphviz.

    Raises:
        ConfigError: another kind of file, or Graphviz or Snakemake is not there.
        RunError: the file cannot be written.
    """
    if file.suffix not in (".dot", *PICTURES):
        raise ConfigError(f"--dag {file}: .dot, .png or .svg is needed")
    graphviz = shutil.which("dot")
    if file.suffix in PICTURES and graphviz is None:
        raise ConfigError(
            f"--dag {file}: needs Graphviz, whose command 'dot' is not there; "
            f"{file.with_suffix('.dot')} can be written without"
        )
    found = _asked(cfg, "--dag", "dot").encode()
    try:
        if file.suffix in PICTURES:
            drawn = [str(graphviz), f"-T{file.suffix[1:]}"]
            found = subprocess.run(drawn, input=found, stdout=subprocess.PIPE, check=True).stdout
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(found)
    except (OSError, subprocess.CalledProcessError) as err:
        raise RunError(f"{file}: cannot be written: {reason(err)}") from None


def times(out: Path) -> tuple[RuleTime, ...]:
    """How long the jobs of each rule have taken."""
    found = {folder.name: sorted(folder.glob("*.tsv")) for folder in (out / TIMES).glob("*")}
    return tuple(
        RuleTime(rule=rule, jobs=len(found[rule]), seconds=sum(map(_taken, found[rule])))
        for rule in _in_order(found)
        if found[rule]
    )


def _in_order(rules: Iterable[str]) -> list[str]:
    """Rules in the order of the data; the one that makes nothing itself is left out."""
    return [rule for rule in RULES if rule in set(rules)]


def _taken(benchmark: Path) -> float:
    with benchmark.open(encoding="utf-8") as file:
        return sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))


def _asked(cfg: WorkflowConfig, *words: str) -> str:
    """What Snakemake answers; in an empty folder, if there is none yet."""
    _require(cfg)
    cfg = _as_begun(cfg)
    with TemporaryDirectory() as away:
        config = Path(away) / CONFIG
        config.write_text(to_yaml(cfg), encoding="utf-8")
        folder = cfg.out if cfg.out.is_dir() else Path(away)
        command = [*snakemake.command(cfg, folder, config), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"Snakemake cannot say what is to be done:\n{done.stderr.strip()}")
    return done.stdout


def _require(cfg: WorkflowConfig) -> None:
    """Check that there is what the workflow needs.

    Raises:
        ConfigError: Snakemake is not installed, or a profile or a machine lacks something.
    """
    if cfg.out.is_file():
        raise ConfigError(f"--out {cfg.out}: is a file; a folder is needed")
    needed = ["snakemake"] + ["snakemake_executor_plugin_slurm"] * (cfg.profile == "slurm")
    if not all(map(importlib.util.find_spec, needed)):
        raise ConfigError(
            "a workflow needs Snakemake, which is not installed: pip install 'jetssl[workflow]'"
        )
    if cfg.profile == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("--profile slurm: there is no SLURM on this machine (no sbatch)")
    if cfg.profile not in snakemake.PROFILES and not (Path(cfg.profile) / "config.yaml").is_file():
        raise ConfigError(
            f"--profile {cfg.profile}: no such profile; local, slurm, or a folder with config.yaml"
        )
    if cfg.container and not (shutil.which("apptainer") or shutil.which("singularity")):
        raise ConfigError(f"container = {cfg.container}: needs Apptainer, which is not there")
    if cfg.jetclass is not None:
        wanted = [name for split, name in JETCLASS.items() if not cfg.has_data(split)]
        missing = [name for name in wanted if not (cfg.jetclass / name).is_dir()]
        if missing:
            raise ConfigError(f"--jetclass {cfg.jetclass}: has no folder {missing[0]}")
    _require_trainings(cfg)


def _require_trainings(cfg: WorkflowConfig) -> None:
    """Check the settings of all trainings, hours before the first one begins."""
    from jetssl_cli.runs import finetune_config, pretrain

    data = {"train": ["train.h5"], "val": ["val.h5"]}
    for method in cfg.methods:
        words = Layer("pretrain.settings", {"out": method, "data": data})
        source = pretrain.load_config(method, cfg.size, words, overrides=cfg.pretrain.settings)
        words = Layer("finetune.settings", {"out": method, "backbone": method, "data": data})
        finetune_config.on_backbone(source, Path(method), [words], overrides=cfg.finetune.settings)


def _as_begun(cfg: WorkflowConfig) -> WorkflowConfig:
    """The same, with the baselines that are in its folder.

    Raises:
        ConfigError: what is in the folder was made with other settings that matter.
    """
    path = cfg.out / CONFIG
    if not path.exists():
        return cfg.model_copy(update={"baselines_of": cfg.plain})
    before = read_yaml(path)
    old = _flat(before)
    made = any((cfg.out / "runs").glob("*/*"))
    matter = {
        ("jetclass", "simulate"): (cfg.out / "data").exists(),
        ("size", "pretrain", "finetune"): made,
    }
    for keys, does in matter.items():
        for key, value in _flat(cfg.model_dump(mode="json", include=set(keys))).items():
            if does and old.get(key) != value:
                raise ConfigError(
                    f"{key} = {value}: the workflow in {cfg.out} has {old.get(key)}; choose "
                    "another --out"
                )
    begun = load(WorkflowConfig, [Layer(str(path), before)])
    if made and cfg.baselines_of not in (None, begun.plain):
        raise ConfigError(
            f"baselines_of = {cfg.baselines_of}: the workflow in {cfg.out} has {begun.plain}; "
            "choose another --out"
        )
    return cfg.model_copy(update={"baselines_of": cfg.baselines_of or begun.plain})


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted names; there are no sections within sections."""
    return {
        f"{key}.{name}" if isinstance(value, Mapping) else key: inner
        for key, value in settings.items()
        for name, inner in (value.items() if isinstance(value, Mapping) else [("", value)])
    }
