"""What a frozen encoder answers, computed once and held in memory.

The vectors are kept as float16. Where a run computes in bfloat16, float16 holds its numbers as they
are (between 6e-5 and 65,504, smaller ones to 6e-8); single precision is rounded to three digits, in
half the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.stream import JetStream, to_batch
from jetssl_cli.encoder.encoder import EncodedBatch, Encoder
from jetssl_cli.errors import RunError
from jetssl_cli.progress import progress

JETS_AT_A_TIME = 1000
BYTES = 2
LARGEST = torch.finfo(torch.float16).max


class EmbeddedJets(JetsInMemory):
    """The jets of a stream as an encoder has answered; the same batches as ``JetsInMemory``."""

    def __init__(self, stream: JetStream, tokens: JetArrays) -> None:
        super().__init__(stream)
        self._held = tokens

    def to_batch(self, jets: JetArrays) -> JetBatch:
        """The vectors of jets as a batch."""
        return EncodedBatch(
            features=torch.from_numpy(jets.features),
            ids=torch.from_numpy(jets.ids).long(),
            jets=torch.from_numpy(jets.jets),
            packing=Packing.of(torch.from_numpy(jets.sizes)),
            labels=torch.from_numpy(jets.labels).long(),
        )


def embedded(
    encoder: Encoder, readers: Sequence[JetReader], *, half: bool, limit: int
) -> list[EmbeddedJets]:
    """Encode all jets of some readers.

    Args:
        encoder: stays as it is, and where it is.
        readers: of the jets.
        half: compute in bfloat16, as a run of this precision does.
        limit: most bytes that the vectors may take.

    Raises:
        DataError: the data cannot be read.
        RunError: the vectors do not fit, or are too large for float16.
    """
    held = [
        reader if isinstance(reader, JetsInMemory) else _in_memory(reader) for reader in readers
    ]
    registers, width = encoder.cfg.registers, encoder.width
    rows = sum(int(each.jets().sizes.sum()) + registers * each.num_jets for each in held)
    if (needed := rows * width * BYTES) > limit:
        num_jets = sum(each.num_jets for each in held)
        raise RunError(
            f"the embeddings of {num_jets:,} jets take {_gib(needed)}, embeddings_memory = "
            f"{_gib(limit)}: take fewer jets (--num-jets, data.num_val_jets), allow more memory, "
            "or leave --cache-embeddings out"
        )
    total = sum(each.num_jets for each in held)
    with _evaluating(encoder), progress("embed", total, "jets") as advance:
        found = []
        for each in held:
            jets = each.jets()
            tokens = np.empty((int(jets.sizes.sum()) + registers * len(jets), width), np.float16)
            row = 0
            for start in range(0, len(jets), JETS_AT_A_TIME):
                part = jets.between(start, min(start + JETS_AT_A_TIME, len(jets)))
                answer = _encode(encoder, part, half)
                tokens[row : row + len(answer)] = answer.numpy()
                row += len(answer)
                advance(len(part))
            found.append(EmbeddedJets(each.stream, _arrays(jets, tokens, registers)))
    return found


def _in_memory(reader: JetReader) -> JetsInMemory:
    assert isinstance(reader, JetStream)
    return JetsInMemory(reader)


def _encode(encoder: Encoder, jets: JetArrays, half: bool) -> torch.Tensor:
    device = encoder.registers.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        tokens = encoder(to_batch(jets).to(device)).tokens
    if len(tokens) and not float(tokens.abs().max()) <= LARGEST:
        raise RunError(
            "the encoder answers with numbers that do not fit float16, or are none; leave "
            "--cache-embeddings out"
        )
    return tokens.to("cpu", torch.float16)


def _arrays(jets: JetArrays, tokens: np.ndarray, registers: int) -> JetArrays:
    return JetArrays(
        features=tokens,
        ids=np.zeros(len(tokens), np.uint8),
        truth=np.zeros((len(tokens), 0), np.int32),
        sizes=jets.sizes + registers,
        jets=jets.jets,
        labels=jets.labels,
    )


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    """On the GPU, if there is one, without dropout; then as before."""
    before, training = encoder.registers.device, encoder.training
    encoder.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    try:
        yield
    finally:
        encoder.to(before).train(training)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
