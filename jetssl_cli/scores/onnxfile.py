"""A finetuned network as one ONNX file: physical jets in, scores out.

    constituents (J, N, F) float32   ids (J, N) int64   mask (J, N) bool   jets (J, G) float32
        -> scores (J, C) float32, logits (J, C) float32

J and N may be any numbers. Where the mask is False a constituent is none, and its numbers may be
anything. A data set without particle classes has no ids. The scaling is a part of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.place import appearing
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.data.stream import to_batch
from jetssl_cli.errors import ConfigError, DataError, RunError, reason
from jetssl_cli.scores.onnxnetwork import DenseNetwork, padded

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
TOLERANCE = 1e-4
"""How far the scores of the file may be from those of PyTorch."""
SIZES = (1, 7, 1000)
"""Jets in the batches that both are compared on."""
NUM_COMPARED = 2 * sum(SIZES)
HASH = "sha256"
"""Key of the metadata: hash of the network."""


def require_packages(purpose: str = "--onnx") -> None:
    """Check that ONNX files can be written and run; ``purpose`` begins the message.

    Raises:
        ConfigError: a package of the extra is missing.
    """
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        raise ConfigError(
            f"{purpose}: the package {missing[0]} is missing; install the extra 'onnx': "
            "pip install 'jetssl[onnx]'"
        )


def write_onnx(
    path: Path,
    network: DenseNetwork,
    schema: Schema,
    jets: JetArrays,
    wanted: Float[np.ndarray, "J C"],
    about: dict[str, str],
) -> float:
    """Write the file, and keep it if it answers as PyTorch does; the largest difference.

    Args:
        path: the file; it appears when it has been compared.
        network: on the host, in evaluation mode.
        schema: what the network expects.
        jets: some that it is compared on.
        wanted: their scores.
        about: more to say in the metadata.

    Raises:
        RunError: the scores differ by more than ``TOLERANCE``.
        DataError: the file cannot be written.
    """
    import onnx

    with appearing(path) as partial:
        onnx.save(_model(network, schema, about), str(partial))
        difference = _difference(partial, bool(schema.ids), jets, wanted)
        if not difference <= TOLERANCE:
            raise RunError(
                f"{path}: its scores differ by {difference:.2g} from those of PyTorch, "
                f"more than {TOLERANCE:g}; it is not kept"
            )
    return difference


def _model(network: DenseNetwork, schema: Schema, about: dict[str, str]) -> Any:
    """The network as an ONNX model, with what its inputs and outputs mean."""
    example = {
        "constituents": torch.zeros(3, 5, len(schema.constituents)),
        "mask": torch.ones(3, 5, dtype=torch.bool),
        "jets": torch.zeros(3, len(schema.jets)),
        "ids": torch.zeros(3, 5, dtype=torch.int64),
    }
    if not schema.ids:
        del example["ids"]
    of_jets, of_constituents = torch.export.Dim("J"), torch.export.Dim("N")
    shapes = {
        name: {0: of_jets} if name == "jets" else {0: of_jets, 1: of_constituents}
        for name in example
    }
    with _quiet():
        program = torch.onnx.export(
            network,
            (),
            kwargs=example,
            input_names=list(example),
            output_names=["scores", "logits"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    for key, value in {**_described(schema), **about, HASH: _hash(model)}.items():
        model.metadata_props.add(key=key, value=value)
    return model


def _hash(model: Any) -> str:
    """SHA-256 of the network of a model, its weights included."""
    return hashlib.sha256(model.graph.SerializeToString()).hexdigest()


def _described(schema: Schema) -> dict[str, str]:
    """What the axes of inputs and outputs mean, as JSON."""

    def columns(features: Sequence[Feature]) -> str:
        return json.dumps([{"name": one.name, "unit": one.unit} for one in features])

    return {
        "constituents": columns(schema.constituents),
        "ids": json.dumps(list(schema.ids)),
        "mask": "true for constituents, false for padding",
        "jets": columns(schema.jets),
        "classes": json.dumps(list(schema.classes)),
    }


def verify_onnx(path: Path) -> tuple[str, dict[str, str]]:
    """Look through an ONNX file of ours, and run it; what it holds, and its metadata.

    Raises:
        ConfigError: a package of the extra is missing.
        DataError: it is not one, is damaged, or does not answer with scores.
    """
    require_packages(str(path))
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        about = {entry.key: entry.value for entry in model.metadata_props}
        classes, columns, jets, ids = (
            json.loads(about[key]) for key in ("classes", "constituents", "jets", "ids")
        )
        outside = [one.name for one in model.graph.initializer if one.external_data]
        if outside:
            raise DataError(f"{path}: {outside[0]} lies in another file, which is never followed")
        if about.get(HASH, _hash(model)) != _hash(model):
            raise DataError(f"{path}: damaged: its hash is not that of its network")
        onnx.checker.check_model(model)
        feed = {
            "constituents": np.zeros((2, 3, len(columns)), np.float32),
            "mask": np.array([[True] * 3, [True, False, False]]),
            "jets": np.zeros((2, len(jets)), np.float32),
            "ids": np.zeros((2, 3), np.int64),
        }
        if not ids:
            del feed["ids"]
        (scores,) = _session(path).run(["scores"], feed)
    except DataError:
        raise
    except Exception as err:  # protobuf and onnxruntime raise whatever the bytes lead to
        told = reason(err)[:200]
        raise DataError(f"{path}: not a readable ONNX file of jetssl: {told}") from None
    right = scores.shape == (2, len(classes)) and np.allclose(scores.sum(axis=1), 1, atol=1e-3)
    if not right:
        raise DataError(f"{path}: damaged: its network does not answer with scores")
    told = f"hash {about[HASH][:16]}" if HASH in about else "without a hash"
    return f"network of {len(classes)} classes, opset {OPSET}, {told}", about


def _difference(
    path: Path, has_ids: bool, jets: JetArrays, wanted: Float[np.ndarray, "J C"]
) -> float:
    """The largest difference of a score, over batches of several sizes."""
    session = _session(path)
    largest = 0.0
    for start, stop in batches(len(jets)):
        batch = to_batch(jets.between(start, stop))
        inputs = padded(batch, max(batch.packing.longest, 1))
        if not has_ids:
            del inputs["ids"]
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        (scores,) = session.run(["scores"], feed)
        found = float(np.abs(scores - wanted[start:stop]).max())
        largest = found if np.isnan(found) else max(largest, found)
    return largest


def _session(path: Path) -> Any:
    """What runs the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def batches(num_jets: int) -> Iterator[tuple[int, int]]:
    """Ranges of jets, of each of the sizes in turn, as far as the jets go."""
    start = 0
    while start < num_jets:
        for size in SIZES:
            if start < num_jets:
                yield start, min(start + size, num_jets)
            start += size


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says much that concerns nobody."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
