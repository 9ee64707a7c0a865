"""``jetssl export``: what a trained network says of the jets of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jetssl_cli.config import Strict
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.place import require_place
from jetssl_cli.data.schema import Schema
from jetssl_cli.encoder.attention import Backend
from jetssl_cli.errors import ConfigError, DataError, RunError, enough_memory
from jetssl_cli.progress import note, progress
from jetssl_cli.runs import checkpoint
from jetssl_cli.scores import onnxfile, onnxnetwork
from jetssl_cli.scores.friendtree import write_tree
from jetssl_cli.scores.network import Answers, Network, Precision, Predictor, load_network
from jetssl_cli.scores.provenance import Provenance, provenance, sha256
from jetssl_cli.scores.scorefile import write_scores, write_vectors
from jetssl_cli.scores.tasks import exporter

JETS_PER_POOL = 4_000
"""Jets in memory at a time, among which those of similar length are run together."""
JETS_OF_A_TASK = 1_000
"""Jets in memory at a time, for a task other than classification."""

Append = Callable[[JetArrays, NDArray[np.int64], Answers], None]


class ExportConfig(Strict):
    """What to export, and where to."""

    run: Path
    """Folder of a finetuning run, or, for embeddings alone, of a pretraining run."""
    data: Path
    """Jagged file of the jets."""
    out: Path | None = None
    """The score file."""
    embeddings: Path | None = None
    """File of the mean vector of each jet."""
    root: Path | None = None
    """ROOT file with the scores as a tree."""
    onnx: Path | None = None
    """ONNX file of the network, compared with PyTorch on the first jets."""
    num_jets: PositiveInt | None = None
    """Export the first so many jets of the file only."""
    batch_size: PositiveInt | None = None
    """Jets at a time in the network; 48 on a CPU and 1000 on a GPU if not given."""
    attention: Backend = "auto"
    """Attention back end; auto takes dense boxes on a CPU, and FlashAttention where it runs."""
    precision: Precision | None = None
    """Arithmetic of the network; like that of the run's training if not given."""
    unlabelled: bool = False
    """The classes of the data are not those of the network: all labels are written as -1."""
    overwrite: bool = False
    """Replace what is there already."""

    @property
    def outputs(self) -> dict[str, Path]:
        """Option -> file."""
        named = {
            "--out": self.out,
            "--embeddings": self.embeddings,
            "--root": self.root,
            "--onnx": self.onnx,
        }
        return {option: path for option, path in named.items() if path is not None}


class ExportReport(Strict):
    """What was exported."""

    files: dict[str, Path]
    """What it is -> where it is."""
    num_jets: int
    precision: str
    """Arithmetic that the network ran in."""
    onnx_difference: float | None = None
    """The largest difference between scores of the ONNX file and of PyTorch."""


@enough_memory("a smaller --batch-size (jets at a time in the network) needs less")
def export(cfg: ExportConfig) -> ExportReport:
    """Write what a network says of every jet, one pool of jets at a time; and the network itself.

    Jets are cut to the constituents that it was trained on. Scores, logits and vectors are float32
    whatever the arithmetic; the order is that of the data file. Of a task other than classification
    ``out`` holds what ``trackfile.py`` and ``sic.py`` say, computed in float32.

    Raises:
        ConfigError: nothing to write, or a package or back end is missing.
        DataError: the data cannot be read, or an output not be written.
        RunError: not a run, data that do not fit it, an output that is there already or is an
            input, or an ONNX file that does not answer like the network.
        OutOfMemoryError: the memory does not suffice.
    """
    _check_outputs(cfg)
    if _is_of_a_task(cfg):
        return _export_task(cfg)
    network = load_network(cfg.run)
    if network.head is None and (needs := sorted(cfg.outputs.keys() - {"--embeddings"})):
        raise RunError(
            f"{cfg.run}: is a pretrain run; a finetune run is needed here: it has no scores for "
            f"{needs[0]}, only --embeddings"
        )
    with JaggedFile(cfg.data) as file:
        checkpoint.match(file.schema, network.schema, str(cfg.data), cfg.run)
        labels = _labels(cfg, file.schema, network)
        count = min(file.num_jets, cfg.num_jets or file.num_jets)
        if count == 0:
            raise DataError(f"{cfg.data}: holds no jets")
        difference = _export_onnx(cfg, network, file, count) if cfg.onnx else None
        predictor = Predictor(
            network,
            precision=cfg.precision,
            attention=cfg.attention,
            batch_size=cfg.batch_size,
        )
        if cfg.outputs.keys() - {"--onnx"}:
            origin = provenance(cfg.run, network.weights, cfg.data, predictor.precision)
            _predict(cfg, predictor, origin, _pools(file, count, network), labels, count)
    return ExportReport(
        files=cfg.outputs,
        num_jets=count,
        precision=predictor.precision,
        onnx_difference=difference,
    )


def _is_of_a_task(cfg: ExportConfig) -> bool:
    """The run is one of a task other than classification; refuses what is not made for those."""
    if exporter(cfg.run) is None:
        return False
    asked = {"--num-jets": cfg.num_jets, "--precision": cfg.precision}
    asked |= {"--unlabelled": cfg.unlabelled, "--attention": cfg.attention != "auto"}
    wrong = sorted(cfg.outputs.keys() - {"--out"}) or [key for key, value in asked.items() if value]
    if wrong:
        raise ConfigError(f"{wrong[0]}: is for the classes of jets; {cfg.run} has another task")
    return True


def _export_task(cfg: ExportConfig) -> ExportReport:
    export_task = exporter(cfg.run)
    assert export_task is not None
    assert cfg.out is not None
    count = export_task(cfg.run, cfg.data, cfg.out, cfg.batch_size or JETS_OF_A_TASK)
    return ExportReport(files=cfg.outputs, num_jets=count, precision="32")


def _predict(
    cfg: ExportConfig,
    predictor: Predictor,
    origin: Provenance,
    pools: Iterator[JetArrays],
    labels: Callable[[JetArrays], NDArray[np.int64]],
    count: int,
) -> None:
    """Run the network over all pools, and write each before the next is read."""
    network = predictor.network
    with ExitStack() as stack:
        writers = _writers(cfg, network, origin, stack)
        advance = stack.enter_context(progress(f"export {cfg.run.name}", count, "jets"))
        for jets in pools:
            answers, of_jets = predictor(jets), labels(jets)
            for append in writers:
                append(jets, of_jets, answers)
            advance(len(jets))


def _writers(
    cfg: ExportConfig, network: Network, origin: Provenance, stack: ExitStack
) -> list[Append]:
    """What writes the answers, one for each file; the files appear when the stack is closed."""
    schema = network.schema
    classes, names = schema.classes, [feature.name for feature in schema.jets]
    units = [feature.unit for feature in schema.jets]
    found: list[Append] = []
    if cfg.out is not None:
        scores = stack.enter_context(
            write_scores(
                cfg.out,
                classes=classes,
                jet_columns=names,
                jet_units=units,
                run=origin.run,
                data=origin.data,
                origin=origin,
            )
        )
        found.append(lambda jets, of, said: scores.append(said.scores, said.logits, of, jets.jets))
    if cfg.embeddings is not None:
        vectors = stack.enter_context(
            write_vectors(
                cfg.embeddings, classes=classes, jet_columns=names, jet_units=units, origin=origin
            )
        )
        found.append(lambda jets, of, said: vectors.append(said.vectors, of, jets.jets))
    if cfg.root is not None:
        tree = stack.enter_context(
            write_tree(cfg.root, classes=classes, jet_columns=names, origin=origin)
        )
        found.append(lambda jets, of, said: tree.append(said.scores, of, jets.jets))
    return found


def _pools(file: JaggedFile, count: int, network: Network) -> Iterator[JetArrays]:
    for start in range(0, count, JETS_PER_POOL):
        yield file.read(start, min(start + JETS_PER_POOL, count)).first(network.max_constituents)


def _export_onnx(cfg: ExportConfig, network: Network, file: JaggedFile, count: int) -> float:
    assert cfg.onnx is not None
    assert network.head is not None
    note(f"{cfg.onnx}: to write the network and to try it takes about a minute")
    jets = file.read(0, min(count, onnxfile.NUM_COMPARED)).first(network.max_constituents)
    packed = Predictor(network, precision="32", attention="padded")
    wanted = packed(jets).scores
    about = {
        "max_constituents": str(network.max_constituents),
        "run": str(cfg.run),
        "weights_hash": sha256(cfg.run / network.weights),
    }
    dense = onnxnetwork.DenseNetwork(network.encoder.cpu(), network.head.cpu()).eval()
    return onnxfile.write_onnx(cfg.onnx, dense, network.schema, jets, wanted, about)


def _labels(
    cfg: ExportConfig, found: Schema, network: Network
) -> Callable[[JetArrays], NDArray[np.int64]]:
    """A function that gives the labels of jets as the network counts its classes.

    Raises:
        RunError: the data have a class that the network does not know.
    """
    if cfg.unlabelled:
        return lambda jets: np.full(len(jets), -1)
    known = network.schema.classes
    unknown = [name for name in found.classes if name not in known]
    if unknown:
        raise RunError(
            f"{cfg.data}: its classes are {', '.join(found.classes)}; {cfg.run} was trained on "
            f"{', '.join(known)}; --unlabelled exports without labels"
        )
    numbers = np.array([known.index(name) for name in found.classes])

    def of(jets: JetArrays) -> NDArray[np.int64]:
        if not ((jets.labels >= 0) & (jets.labels < len(numbers))).all():
            raise DataError(f"{cfg.data}: damaged: a label is not the index of a class")
        return numbers[jets.labels]

    return of


def _check_outputs(cfg: ExportConfig) -> None:
    """Refuse what cannot be written before anything is read.

    Raises:
        ConfigError: no output, two of one name, or a package is missing.
        DataError: an output cannot be written.
        RunError: an output is an input, a folder, or is there already.
    """
    outputs = cfg.outputs
    if not outputs:
        raise ConfigError("nothing to write: give --out, --embeddings, --root or --onnx")
    if cfg.onnx is not None:
        onnxfile.require_packages()
    names = (checkpoint.CONFIG, checkpoint.SCHEMA, checkpoint.MODEL, checkpoint.BACKBONE)
    inputs = {(cfg.run / name).resolve() for name in names}
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        place = path.resolve()
        if place == cfg.data.resolve():
            raise RunError(f"{path}: is the file of the jets; choose another name")
        if place in inputs:
            raise RunError(f"{path}: is a file of the run; choose another name")
        if place in seen:
            raise ConfigError(f"{seen[place]} and {option} are the same file: {path}")
        if path.is_dir():
            raise RunError(f"{path}: is a folder; {option} is a file")
        if path.exists() and not cfg.overwrite:
            raise RunError(f"{path}: is there already; choose another name or --overwrite")
        seen[place] = option
    for path in outputs.values():
        require_place(path)
