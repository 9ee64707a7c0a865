"""``jetssl doctor``: what works on this machine, and what to do about what does not.

Everything is tried, not looked up: attention back ends attend, a file is written and read, the
tracking server is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import torch

from jetssl_cli import __version__
from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.config import Strict
from jetssl_cli.encoder.attention import Backend, cpu_capabilities, has_fast_bf16, plan, require
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.errors import ConfigError, nearest, reason
from jetssl_cli.runs.server import shown_uri

EXTRAS = {
    "flash": ("flash-attn",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "simulate": ("fastjet", "pythia8mc"),
    "subjets": ("fastjet",),
    "workflow": ("snakemake", "snakemake-executor-plugin-slurm"),
}
"""Packages of each extra."""
BACKENDS: tuple[Backend, ...] = ("triton", "flash-attn", "varlen", "padded", "reference")
MIB = 2**20
DISK_MIB = 64
"""Written and read to measure a disk."""
SECONDS_FOR_A_SERVER = 5.0
MLFLOW = "MLFLOW_"
"""How the names of MLflow's settings in the environment begin."""
STORES = ("sqlite", "postgresql", "mysql", "mssql", "file", "http", "https", "databricks")
"""Schemes of what MLFLOW_TRACKING_URI may name; plug-ins of MLflow add others."""


class Finding(Strict):
    """One thing that was tried."""

    name: str
    state: Literal["works", "absent", "broken"]
    """Absent is what a machine need not have; broken is what a run would stumble over."""
    found: str
    """What was seen: versions, rates, the reason of a failure."""
    advice: str | None = None
    """What to do about it."""


def doctor(folder: Path) -> list[Finding]:
    """Try everything that a run may need; ``folder`` is where runs and data are to be."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _software,
        _devices,
        _attention,
        _encoder,
        _compiler,
        lambda: _disk(folder),
        _tracking,
        _settings_of_mlflow,
        _extras,
    )
    return [finding for part in parts for finding in part()]


def _software() -> Iterator[Finding]:
    python = f"{platform.python_version()}, {sys.executable}"
    yield Finding(name="jetssl", state="works", found=f"{__version__}; Python {python}")
    names = ("torch", "lightning", "h5py", "numpy", "mlflow")
    versions = {name: _version(name) for name in names}
    missing = [name for name, found in versions.items() if found is None]
    yield Finding(
        name="packages",
        state="broken" if missing else "works",
        found=", ".join(f"{name} {found or 'missing'}" for name, found in versions.items()),
        advice=f"pip install {' '.join(missing)}" if missing else None,
    )


def _devices() -> Iterator[Finding]:
    capabilities = cpu_capabilities()
    fast = [
        name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)
    ]
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} logical cores"
    yield Finding(name="CPU", state="works", found=", ".join([threads, *fast]))
    arithmetic = "bf16-mixed" if has_fast_bf16() else "32"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        found = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        yield Finding(name=f"GPU {number}", state="works", found=found)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        found = f"none seen by torch {torch.__version__}"
        advice = None if built else "with a GPU: install a CUDA build of torch"
        yield Finding(name="GPU", state="absent", found=found, advice=advice)
    yield Finding(name="train.precision=auto", state="works", found=arithmetic)


def _attention() -> Iterator[Finding]:
    """Each back end against the definition, on jets of which one is empty."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packing = Packing.of(torch.tensor([3, 0, 17, 1])).to(device)
    rng = torch.Generator(device).manual_seed(0)
    shape = (3, packing.rows, 2, 32)
    q, k, v = torch.randn(shape, generator=rng, device=device).bfloat16()

    def attended(backend: Backend, *qkv: torch.Tensor) -> torch.Tensor:
        plans = (plan(packing, causal=causal, backend=backend) for causal in (False, True))
        return torch.stack([attend(*qkv)[: packing.total] for attend in plans])

    wanted = attended("reference", q.float(), k.float(), v.float())
    for backend in BACKENDS:
        name = f"attention {backend}"
        try:
            require(backend)
        except ConfigError as err:
            found = str(err).partition(": ")[2]
            yield Finding(name=name, state="absent", found=found)
            continue
        try:
            worst = (attended(backend, q, k, v).float() - wanted).abs().max().item()
        except Exception as err:  # whatever a kernel does on an unknown machine is the finding
            yield Finding(name=name, state="broken", found=reason(err)[:200])
            continue
        state: Literal["works", "broken"] = "works" if worst < 3e-2 else "broken"
        found = f"differs from the definition by {worst:.1e} in bf16"
        yield Finding(name=name, state=state, found=found)


def _encoder() -> Iterator[Finding]:
    """A small encoder as trainings run it here, values and gradients, against a plain one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        plain = _vectors_and_gradients(torch.device("cpu"), "reference", half=False)
        ours = _vectors_and_gradients(device, "auto", half=has_fast_bf16())
        worst = max(
            ((own.cpu() - one).norm() / one.norm()).item()
            for own, one in zip(ours, plain, strict=True)
        )
    except Exception as err:  # whatever a kernel does on an unknown machine is the finding
        yield Finding(name="encoder", state="broken", found=reason(err)[:200])
        return
    most = 5e-2 if has_fast_bf16() else 1e-3
    found = f"values and gradients differ from the definition by {worst:.1e} of their size"
    yield Finding(name="encoder", state="works" if worst < most else "broken", found=found)


def _vectors_and_gradients(
    device: torch.device, attention: Backend, *, half: bool
) -> list[torch.Tensor]:
    """Of an encoder whose weights are drawn, and nowhere 0, on jets of which one is empty."""
    rng = torch.Generator().manual_seed(0)
    cfg = EncoderConfig(width=64, depth=2, heads=2, registers=2, attention=attention)
    encoder = cfg.build(torch.nn.Identity(), features=4, ids=3, jets=2)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) / weight.shape[-1] ** 0.5)
    packing = Packing.of(torch.tensor([3, 0, 17, 1]))
    batch = JetBatch(
        features=torch.randn(packing.total, 4, generator=rng),
        ids=torch.arange(packing.total) % 3,
        jets=torch.randn(packing.num_jets, 2, generator=rng),
        packing=packing,
        labels=torch.zeros(packing.num_jets, dtype=torch.int64),
    )
    encoder.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        tokens = encoder.encode(batch.to(device)).tokens.float()
    tokens.square().mean().backward()  # type: ignore[no-untyped-call]
    weights = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    return [tokens.detach(), torch.cat(weights)]


def _compiler() -> Iterator[Finding]:
    found = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    yield Finding(
        name="C++ compiler",
        state="works" if found else "absent",
        found=found or "none on the path",
        advice=None if found else "train.compile=true needs one on a CPU: g++ or clang++",
    )


def _disk(folder: Path) -> Iterator[Finding]:
    """Rates of a file that is written through to the disk, and read back past the cache."""
    name, block = f"disk {folder}", os.urandom(MIB)
    try:
        with TemporaryDirectory(dir=folder, prefix=".jetssl-doctor-") as place:
            path = Path(place) / "blocks"
            start = time.perf_counter()
            with path.open("wb") as file:
                for _ in range(DISK_MIB):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            written = time.perf_counter() - start
            start = time.perf_counter()
            with path.open("rb") as file:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                whole = all(file.read(MIB) == block for _ in range(DISK_MIB))
            read = time.perf_counter() - start
        left = shutil.disk_usage(folder).free / 2**30
    except OSError as err:
        advice = "choose a folder that can be written, with --folder"
        yield Finding(name=name, state="broken", found=reason(err), advice=advice)
        return
    found = (
        f"writes {DISK_MIB / written:,.0f} MiB/s, reads {DISK_MIB / read:,.0f} MiB/s, "
        f"{left:,.0f} GiB free"
    )
    yield Finding(name=name, state="works" if whole else "broken", found=found)


def _tracking() -> Iterator[Finding]:
    shown = shown_uri()
    try:
        parts = urlsplit(shown)
    except ValueError as err:
        advice = "MLFLOW_TRACKING_URI: an address is needed such as http://host:5000"
        found = f"{shown}: {reason(err)[:200]}"
        yield Finding(name="MLflow", state="broken", found=found, advice=advice)
        return
    scheme = parts.scheme.partition("+")[0]
    if scheme not in ("", *STORES) and (near := nearest(scheme, STORES)):
        advice = f"MLFLOW_TRACKING_URI: did you mean {near!r}?"
        found = f"{shown}: no store is named by {scheme!r}"
        yield Finding(name="MLflow", state="broken", found=found, advice=advice)
        return
    folder = Path(shown.partition("sqlite:///")[2]).parent
    if scheme == "sqlite" and not os.access(folder, os.W_OK):
        advice = "MLFLOW_TRACKING_URI: a folder that can be written is needed"
        found = f"{shown}: cannot be written"
        yield Finding(name="MLflow", state="broken", found=found, advice=advice)
        return
    if parts.scheme not in ("http", "https"):
        yield Finding(name="MLflow", state="works", found=shown)
        return
    try:
        with urlopen(f"{shown.rstrip('/')}/health", timeout=SECONDS_FOR_A_SERVER) as answer:
            found = f"{shown} answers {answer.status}"
        yield Finding(name="MLflow", state="works", found=found)
    except (OSError, HTTPException, ValueError) as err:
        advice = "runs go on without it: their folders have everything"
        within = err.reason if isinstance(err, URLError) else None
        found = f"{shown}: {reason(within if isinstance(within, OSError) else err)[:200]}"
        yield Finding(name="MLflow", state="absent", found=found, advice=advice)


def _settings_of_mlflow() -> Iterator[Finding]:
    """Variables of the environment that are misspelled: MLflow leaves them alone in silence."""
    given = sorted(name for name in os.environ if name.startswith(MLFLOW))
    if not given or _version("mlflow") is None:
        return
    from mlflow import environment_variables

    known = [name for name in dir(environment_variables) if name.startswith(MLFLOW)]
    short = [name.removeprefix(MLFLOW) for name in known]
    for name in given:
        if name not in known and (near := nearest(name.removeprefix(MLFLOW), short)):
            advice = f"did you mean {MLFLOW}{near}?"
            found = "is no setting of MLflow"
            yield Finding(name=name, state="broken", found=found, advice=advice)


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        versions = {name: _version(name) for name in packages}
        missing = [name for name, found in versions.items() if found is None]
        how, useful = "", True
        if extra == "flash":  # its package compiles with the torch that is there, for a GPU
            how, useful = "--no-build-isolation ", torch.cuda.is_available()
        yield Finding(
            name=f"extra {extra}",
            state="absent" if missing else "works",
            found=", ".join(f"{name} {found or 'missing'}" for name, found in versions.items()),
            advice=f"pip install {how}'jetssl[{extra}]'" if missing and useful else None,
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
