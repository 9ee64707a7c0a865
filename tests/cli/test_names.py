"""Names: a wrong one is told with the nearest right one, and a shell completes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from jetssl_cli.cli import names
from jetssl_cli.cli.main import main
from jetssl_cli.data import report
from jetssl_cli.data.simulation.datasets import Split
from jetssl_cli.encoder.attention import Backend
from jetssl_cli.errors import suggest
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.scores import scan, tables

NEW = "pretrain --method ssfm --train train.h5 --val val.h5 --out run"
TUNED = "finetune --backbone runs/a --train train.h5 --val val.h5 --out run"
SCAN = "scan --backbone runs/a --num-jets 5 --train t.h5 --val v.h5 --test t.h5 --out scan"
SIMULATE = "simulate jetclass --num-jets 3 --out sim"
WRONG = {
    "pretrian --method ssfm": "'pretrain'",
    "simulate jetclas": "'jetclass'",
    "pretrain --metod ssfm": "--method",
    "convert a.root --recipe jetclass --out o --job 3": "--jobs",
    NEW.replace("ssfm", "sfm"): "'ssfm'",
    NEW.replace("ssfm", "SSFM"): "'ssfm'",
    f"{NEW} --size tny": "'tiny'",
    f"{NEW} --attention varln": "'varlen'",
    f"{NEW} optim.lrr=1": "'lr'",
    f"{NEW} optm.lr=1": "'optim'",
    f"{NEW} objective.name=mp": "'mpm'",
    f"{NEW} objective.mask.name=subjets": "'subjet'",
    f"{NEW} train.precision=bf16": "'bf16-mixed'",
    f"{NEW} train.keep=bst": "'best'",
    f"{NEW} trackng=false": "'tracking'",
    f"{TUNED} --task clasify": "'classify'",
    f"{SCAN} --modes frozen,ful": "'full'",
    f"{SIMULATE} --split vall": "'val'",
    f"{SIMULATE} --processes htobb": "'HToBB'",
    "convert a.root --recipe jetclas --out o": "'jetclass'",
    "inspect a.h5 --format markdwn": "'markdown'",
    "evaluate a.h5 --format latx": "'latex'",
    "export r --data a.h5 --out o.h5 --precision b16-mixed": "'bf16-mixed'",
    "export r --data a.h5 --out o.h5 --attention refrence": "'reference'",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_name_is_told_with_the_nearest(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["jetssl", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    assert end.value.code == 2
    assert not told.out
    assert WRONG[words] in told.err
    assert "ossible" in told.err or "id you mean" in told.err
    assert "Traceback" not in told.err


def test_the_nearest_name_whatever_its_case():
    assert suggest("SSFM", ["mpm", "ssfm"]) == "did you mean 'ssfm'?"
    assert suggest("hbb", ["Hbb", "hcb"]) == "did you mean 'Hbb'?"
    assert suggest("bf16", ["32", "bf16-mixed"]) == "did you mean 'bf16-mixed'?"
    assert suggest("x", ["mpm", "ssfm"]) == "valid: mpm, ssfm"


def complete(words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("jetssl"))],
        env={
            **os.environ,
            "_JETSSL_COMPLETE": "complete_bash",
            "COMP_WORDS": f"jetssl {words}",
            "COMP_CWORD": str(len(words.split(" "))),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pretr", ["pretrain"]),
        ("pretrain --dry", ["--dry-run"]),
        ("pretrain --method ", ["dino", "gpt", "jepa", "mpm", "ssfm"]),
        ("pretrain --size s", ["small"]),
        ("pretrain --attention va", ["varlen"]),
        ("finetune --task t", ["track-origin"]),
        ("convert a --recipe jetc", ["jetclass", "jetclass2"]),
        ("scan --modes frozen,f", ["frozen,full", "frozen,from-scratch"]),
        ("simulate btag --processes Z", ["ZprimeToBB", "ZprimeToCC", "ZprimeToQQ"]),
    ],
)
def test_the_shell_completes_names(words, offered):
    assert complete(words) == offered


def test_completion_imports_nothing_heavy():
    code = (
        "import sys; from jetssl_cli.cli import names; from jetssl_cli.cli.app import app\n"
        "[f('') for f in (names.preset('configs/size'), names.process('btag'))]\n"
        "sys.exit(' '.join({'torch', 'numpy', 'h5py', 'lightning'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_those_that_the_configs_allow():
    assert get_args(Backend) == names.ATTENTION
    assert get_args(scan.Mode) == names.MODES
    assert get_args(Split) == names.SPLITS
    precision = TrainConfig.model_fields["precision"].annotation
    assert get_args(precision) == names.PRECISIONS
    assert report.FORMATS == names.REPORT_FORMATS
    assert tables.FORMATS == names.TABLE_FORMATS
