"""A finetuned network as one ONNX file: physical jets in, scores out.

    constituents (J, N, F) float32   ids (J, N) int64   mask (J, N) bool   jets (J, G) float32
        -> scores (J, C) float32, logits (J, C) float32

J and N may be any numbers. Where the mask is False a constituent is none, and its numbers may be
anything. A data set without particle classes has no ids. The scaling is a part of the file, in
operations that ONNX has: the knot below a value is found by bisection, and the normal quantile by
rational functions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.hdf5 import folder_for
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import Feature, Schema
from jetssl_cli.data.scaling import LIMIT, QuantileScaler, Scaling
from jetssl_cli.data.stream import to_batch
from jetssl_cli.encoder import dense
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.pool import AttentionPool
from jetssl_cli.errors import ConfigError, DataError, RunError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
TOLERANCE = 1e-4
"""How far the scores of the file may be from those of PyTorch."""
SIZES = (1, 7, 1000)
"""Jets in the batches that both are compared on."""
NUM_COMPARED = 2 * sum(SIZES)
HASH = "sha256"
"""Key of the metadata: hash of the network."""


class DenseNetwork(nn.Module):
    """Padded jets in physical units to scores and logits, by the modules of a classifier."""

    present: Float[Tensor, "classes F"]

    def __init__(self, encoder: Encoder, head: AttentionPool) -> None:
        super().__init__()
        scaling = encoder.scaling
        assert isinstance(scaling, Scaling)
        self.encoder, self.head = encoder, head
        self.scale_constituents = IndexedScaler(scaling.constituents)
        self.scale_jets = IndexedScaler(scaling.jets)
        self.register_buffer("present", (~scaling.absent).float())

    def forward(
        self,
        constituents: Float[Tensor, "J N F"],
        mask: Bool[Tensor, "J N"],
        jets: Float[Tensor, "J G"],
        ids: Int[Tensor, "J N"] | None = None,
    ) -> tuple[Float[Tensor, "J C"], Float[Tensor, "J C"]]:
        """Scores and logits of each jet."""
        ids = mask.long() * 0 if ids is None else ids * mask
        features = self.scale_constituents(constituents.masked_fill(~mask[..., None], 0))
        features = features * self.present[ids]
        tokens, real = dense.encode(self.encoder, features, ids, mask, self.scale_jets(jets))
        logits = dense.pool(self.head, tokens, real)
        return logits.softmax(-1), logits


class IndexedScaler(nn.Module):
    """What a scaler computes, by indexing and arithmetic alone."""

    knots: Float[Tensor, " F_times_M"]
    offsets: Float[Tensor, " F_times_M"]
    slopes: Float[Tensor, " F_times_M"]
    columns: Int[Tensor, " F"]

    def __init__(self, scaler: QuantileScaler) -> None:
        super().__init__()
        count = scaler.knots.shape[1]
        self.steps = (count - 1).bit_length()
        more = 2**self.steps - count
        for name, beyond in (("knots", torch.inf), ("offsets", 0.0), ("slopes", 0.0)):
            table = nn.functional.pad(getattr(scaler, name), (0, more), value=beyond)
            self.register_buffer(name, table.flatten())
        self.register_buffer("columns", torch.arange(len(scaler.knots)) * 2**self.steps)

    def forward(self, values: Float[Tensor, "*rows F"]) -> Float[Tensor, "*rows F"]:
        """Scale physical values."""
        line = torch.zeros_like(values, dtype=torch.int64) + self.columns
        for power in reversed(range(self.steps)):
            line = line + (self.knots[line + 2**power] <= values) * 2**power
        share = self.offsets[line] + self.slopes[line] * values.double()
        return normal_quantile(share).clamp(-LIMIT, LIMIT).to(values.dtype)


# fmt: off
_CENTRAL = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550,
     3.64784832476320460504, 1.27045825245236838258, 0.241780725177450611770,
     0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4,
     1.05075007164441684324e-9),
)
_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580,
     0.296560571828504891230, 0.0265321895265761230930, 0.00124266094738807843860,
     2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
     2.04426310338993978564e-15),
)
# fmt: on


def normal_quantile(share: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """sqrt(2) erfinv(share), to 16 digits; Wichura, Applied Statistics 37 (1988) 477, AS 241."""
    half = share / 2
    central = half * _ratio(_CENTRAL, 0.180625 - half.square())
    r = ((1 - share.abs()) / 2).log().neg().sqrt()
    tail = torch.where(r <= 5, _ratio(_MIDDLE, r - 1.6), _ratio(_TAIL, r - 5))
    return torch.where(half.abs() <= 0.425, central, torch.where(half < 0, -tail, tail))


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Tensor) -> Tensor:
    powers = x[..., None] ** torch.arange(len(coefficients[0]), dtype=x.dtype, device=x.device)
    above, below = (powers @ torch.tensor(coefficients, dtype=x.dtype).T).unbind(-1)
    return above / below


def padded(batch: JetBatch, length: int) -> dict[str, Tensor]:
    """The jets of a batch, padded with zeros to a length, by the names of the inputs."""
    mask, lay = dense.boxes(batch.packing, length)
    return {
        "constituents": lay(batch.features),
        "mask": mask,
        "jets": batch.jets,
        "ids": lay(batch.ids),
    }


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
        RunError: the scores differ by more than ``TOLERANCE``, or the file cannot be written.
    """
    import onnx

    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with folder_for(path):
            try:
                onnx.save(_model(network, schema, about), str(partial))
                difference = _difference(partial, bool(schema.ids), jets, wanted)
                if not difference <= TOLERANCE:
                    raise RunError(
                        f"{path}: its scores differ by {difference:.2g} from those of PyTorch, "
                        f"more than {TOLERANCE:g}; it is not kept"
                    )
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as err:
        raise RunError(f"{path}: cannot be written: {err}") from None
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
        reason = " ".join(str(err).split())[:200]
        raise DataError(f"{path}: not a readable ONNX file of jetssl: {reason}") from None
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
