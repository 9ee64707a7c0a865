"""Files of simulated jets: schema, determinism, interruptions, the real command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from data.test_faults import children_of, wait_for_the_end

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.simulation import rootfile, simulate
from jetssl_cli.data.simulation.jetclass import SCHEMA, TYPES, make_jets
from jetssl_cli.data.simulation.processes import PROCESSES
from jetssl_cli.data.simulation.simulate import SPLITS, SimulateConfig, plan, unit_seed
from jetssl_cli.errors import ConfigError, DataError

pytestmark = pytest.mark.slow  # Pythia starts and simulates

JETCLASS = {
    **{f"part_{name}": "float" for name in
       ("px", "py", "pz", "energy", "deta", "dphi", "d0val", "d0err", "dzval", "dzerr", "charge")},
    **{f"part_is{name}": "int32_t" for name in
       ("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")},
    "label_QCD": "float",
    **{f"label_{name}": "bool" for name in ("Hbb", "Hcc", "Hgg", "H4q", "Hqql")},
    **{f"label_{name}": "int32_t" for name in ("Zqq", "Wqq", "Tbqq", "Tbl")},
    **{f"jet_{name}": "float" for name in
       ("pt", "eta", "phi", "energy", "nparticles", "sdmass")},
    **{f"aux_{name}": "float" for name in
       ("genpart_eta", "genpart_phi", "genpart_pid", "genpart_pt", "truth_match")},
}  # fmt: skip
"""Branches of the real JetClass in their order, and what each holds; tau1 to tau4 are left out."""


def config(out: Path, **settings: object) -> SimulateConfig:
    return SimulateConfig(
        **{"out": out, "jets": 8, "processes": ("HToBB", "TTBar"), "seed": 5} | settings
    )


def content(path: Path) -> dict[str, bytes]:
    """The bytes of every branch."""
    with uproot.open(path) as file:
        arrays = file["tree"].arrays(how=dict)
    return {
        name: np.asarray(ak.flatten(values, axis=None)).tobytes() for name, values in arrays.items()
    }


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    return {str(p.relative_to(folder)): content(p) for p in sorted(folder.rglob("*.root"))}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def _small_units(monkeypatch):
    """Files of several units, splits of several files."""
    monkeypatch.setattr(simulate, "JETS_PER_UNIT", 3)
    monkeypatch.setattr(simulate, "JETS_PER_FILE", 6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Eight jets of two processes, in one process."""
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "JETS_PER_UNIT", 3)
        patch.setattr(simulate, "JETS_PER_FILE", 6)
        report = simulate.simulate(config(out))
    assert report.num_jets == report.simulated == 16
    return out


def test_files_are_those_of_jetclass(made: Path) -> None:
    assert files(made) == {
        f"train_100M/{name}_{number}.root"
        for name in ("HToBB", "TTBar")
        for number in ("000", "001")
    }
    with uproot.open(made / "train_100M" / "HToBB_000.root") as file:
        assert file.classnames(cycle=False) == {"simulation": "TObjString", "tree": "TTree"}
        tree = file["tree"]
        assert tree.num_entries == 6
        found = {
            branch.name: branch.typename.removesuffix("[]")
            for branch in tree.branches
            if branch.name != "npart"
        }
        assert found == JETCLASS
        assert list(found) == list(JETCLASS)
        for name in JETCLASS:
            assert tree[name].typename.endswith("[]") == name.startswith("part_")


def test_constituents_are_those_of_the_real_schema(shared_data: Path) -> None:
    """All that JetClass-II has of each particle, under the same names."""
    with uproot.open(shared_data / "JetClassII_example.root") as file:
        real = {name for name in file["tree"].keys() if name.startswith("part_")}  # noqa: SIM118
        lists = {name for name in real if "vector<" in file["tree"][name].typename}
    assert real == lists == {name for name in JETCLASS if name.startswith("part_")}


@pytest.mark.usefixtures("_small_units")
def test_the_number_of_jobs_does_not_matter(made: Path, tmp_path: Path) -> None:
    simulate.simulate(config(tmp_path, jobs=2))
    assert contents(tmp_path) == contents(made)
    simulate.simulate(config(tmp_path / "other", seed=6, processes=("HToBB",)))
    name = "train_100M/HToBB_000.root"
    assert content(tmp_path / "other" / name)["jet_pt"] != content(made / name)["jet_pt"]


@pytest.mark.usefixtures("_small_units")
def test_a_file_is_its_units_in_order(made: Path, tmp_path: Path) -> None:
    units = plan(config(tmp_path))[0].units
    assert [unit.num_jets for unit in units] == [3, 3]
    parts = [make_jets(PROCESSES["HToBB"], u.wanted, u.num_jets, u.seed) for u in units]
    found = content(made / "train_100M" / "HToBB_000.root")
    for name in TYPES:
        assert found[name] == np.concatenate([part[name] for part in parts]).tobytes(), name


def test_no_two_units_share_a_seed() -> None:
    seeds = {
        unit_seed(seed, split, process, unit)
        for seed in (0, 1, 2)
        for split in SPLITS
        for process in PROCESSES.values()
        for unit in range(20)
    }
    assert len(seeds) == 3 * 3 * 10 * 20


def test_splits_lie_in_their_folders(tmp_path: Path) -> None:
    names = {
        split: plan(config(tmp_path, split=split))[0].path.relative_to(tmp_path) for split in SPLITS
    }
    assert {split: str(path) for split, path in names.items()} == {
        "train": "train_100M/HToBB_000.root",
        "val": "val_5M/HToBB_120.root",
        "test": "test_20M/HToBB_100.root",
    }
    large = plan(config(tmp_path, jets=250_001, split="test"))
    assert [f.path.name for f in large[:3]] == [f"HToBB_{n}.root" for n in (100, 101, 102)]
    assert [f.num_jets for f in large[:3]] == [100_000, 100_000, 50_001]
    assert len({unit.seed for f in large for unit in f.units}) == 2 * 501


@pytest.mark.usefixtures("_small_units")
def test_finished_files_are_kept_and_others_refused(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made, out)
    (out / "train_100M" / "TTBar_001.root").unlink()
    before = (out / "train_100M" / "HToBB_000.root").read_bytes()
    report = simulate.simulate(config(out))
    assert [file.skipped for file in report.files] == [True, True, True, False]
    assert report.simulated == 2
    assert (out / "train_100M" / "HToBB_000.root").read_bytes() == before
    assert contents(out) == contents(made)
    with pytest.raises(DataError, match=r"HToBB_000.root: .* seed = 5, not 6; .*--overwrite"):
        simulate.simulate(config(out, seed=6))
    with pytest.raises(DataError, match=r"jets = 8, not 9"):
        simulate.simulate(config(out, jets=9))
    assert contents(out) == contents(made)
    (out / "train_100M" / "HToBB_000.root").write_bytes(b"no")
    with pytest.raises(DataError, match="was not simulated"):
        simulate.simulate(config(out))
    simulate.simulate(config(out, overwrite=True, processes=("HToBB",)))
    assert contents(out) == contents(made)


KILLED = """
import sys
from pathlib import Path
from jetssl_cli.data.simulation import simulate
simulate.JETS_PER_UNIT, simulate.JETS_PER_FILE = 3, 6
if __name__ == "__main__":
    simulate.simulate(simulate.SimulateConfig(
        out=Path(sys.argv[1]), jets=8, processes=("HToBB", "TTBar"), seed=5, jobs=int(sys.argv[2])))
"""


@pytest.mark.usefixtures("_small_units")
@pytest.mark.parametrize("jobs", [2])
def test_a_killed_run_goes_on_where_it_was(made: Path, tmp_path: Path, jobs: int) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(script), str(out), str(jobs)],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.rglob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    wait_for_the_end(workers)
    kept = len(list(out.rglob("*.npz")))
    report = simulate.simulate(config(out))
    assert report.simulated < 16 or not kept
    assert contents(out) == contents(made)
    assert files(out) == files(made)


@pytest.mark.usefixtures("_small_units")
def test_what_another_run_left_is_removed(made: Path, tmp_path: Path) -> None:
    stale = tmp_path / "train_100M" / ".HToBB_000.root.0123456789ab.parts"
    stale.mkdir(parents=True)
    (stale / "000000.npz").write_bytes(b"old")
    mine = plan(config(tmp_path))[0].units[0].path
    mine.parent.mkdir()
    (mine.parent / f".{mine.name}.0123.partial").write_bytes(b"half")
    simulate.simulate(config(tmp_path, processes=("HToBB",)))
    assert files(tmp_path) == {name for name in files(made) if "HToBB" in name}


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def clear(_: bytes) -> bytes:
    return b""


def flip(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


@pytest.mark.usefixtures("_small_units")
@pytest.mark.parametrize("damage", [cut, flip, clear])
def test_a_damaged_unit_is_simulated_again(
    made: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cfg = config(tmp_path, jets=6, processes=("HToBB",))
    units = plan(cfg)[0].units
    for unit in units:
        simulate._work(unit)
    units[1].path.write_bytes(damage(units[1].path.read_bytes()))
    assert simulate.simulate(cfg).simulated == 3
    assert contents(tmp_path) == {
        name: content for name, content in contents(made).items() if "HToBB_000" in name
    }


@pytest.mark.usefixtures("_small_units")
def test_units_of_a_file_that_is_there_are_removed(tmp_path: Path, monkeypatch) -> None:
    """A run was killed after it had written the file, before it removed them."""
    cfg = config(tmp_path, jets=3, processes=("HToBB",))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        simulate.simulate(cfg)
    assert len(files(tmp_path)) == 2
    assert simulate.simulate(cfg).simulated == 0
    assert [path.name for path in (tmp_path / "train_100M").iterdir()] == ["HToBB_000.root"]


@pytest.mark.usefixtures("_small_units")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    synced, replaced = [], []
    sync, replace = os.fsync, Path.replace

    def watch(number: int) -> None:
        synced.append(os.fstat(number).st_ino)
        sync(number)

    def rename(path: Path, target: Path) -> Path:
        replaced.append(synced[-1] == path.stat().st_ino)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(Path, "replace", rename)
    simulate.simulate(config(tmp_path, jets=3, processes=("HToBB",)))
    assert replaced == [True, True]  # of the unit, and of the file


def test_an_error_in_a_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Pythia cannot generate"):
        simulate.simulate(config(tmp_path, pt_min=8000, pt_max=9000, jobs=2))
    assert not list(tmp_path.rglob("*.root"))


@pytest.mark.parametrize(("missing", "told"), [("pythia8mc", "Pythia 8"), ("fastjet", "FastJet")])
def test_without_the_extra(monkeypatch, tmp_path: Path, missing: str, told: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"{told}.*pip install 'jetssl\[simulate\]'"):
        simulate.simulate(config(tmp_path))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "train_100M").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        rootfile.write_part(tmp_path / "train_100M" / "x" / "0.npz", {})
    with pytest.raises(DataError, match="cannot be written"):
        rootfile.write(tmp_path / "train_100M" / "a.root", [], {}, SCHEMA)


class TestCommand:
    def test_simulated_files_are_converted(self, jetssl, tmp_path: Path) -> None:
        words = ("--num-jets", 3, "--split", "val", "--processes", "HToWW4Q,ZJetsToNuNu")
        done = jetssl("simulate", "jetclass", *words, "--out", "sim")
        assert done.returncode == 0, done.stderr
        assert "6 jets in 2 files" in done.stdout
        assert "6/6 jets" in done.stderr
        assert "PYTHIA" not in done.stdout + done.stderr
        done = jetssl("convert", "sim", "--recipe", "jetclass", "--out", "jagged")
        assert done.returncode == 0, done.stderr
        assert "left out      nothing" in done.stdout
        for name, label in (("HToWW4Q", "H4q"), ("ZJetsToNuNu", "QCD")):
            with JaggedFile(tmp_path / "jagged" / "val_5M" / f"{name}_120.h5") as file:
                assert {file.schema.classes[index] for index in file.labels()} == {label}
                assert file.num_jets == 3

    def test_unknown_process(self, jetssl, tmp_path: Path) -> None:
        done = jetssl(
            "simulate", "jetclass", "--num-jets", 3, "--processes", "HtoBB", "--out", "sim"
        )
        assert done.returncode == 2
        assert "error: no process 'HtoBB'; did you mean 'HToBB'?" in done.stderr
        assert not (tmp_path / "sim").exists()

    def test_unknown_split(self, jetssl) -> None:
        done = jetssl("simulate", "jetclass", "--num-jets", 3, "--split", "vall", "--out", "sim")
        assert done.returncode == 2
        assert "split = 'vall'" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_ctrl_c_is_one_line(self, tmp_path: Path, jobs: str) -> None:
        words = [str(Path(sys.executable).with_name("jetssl")), "simulate", "jetclass"]
        process = subprocess.Popen(
            [*words, "--num-jets", "500", "--out", str(tmp_path / "sim"), "--jobs", jobs],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(2.0)  # it simulates
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        assert not list(tmp_path.rglob("*.partial"))
