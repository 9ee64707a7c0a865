"""The ONNX file answers as PyTorch does; its scaling is the scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.jets import SIZES, random_batch, randomise, schema, tiny_encoder

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.quantiles import LIMIT, QuantileScaler
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, RunError
from jetssl_cli.scores import onnxfile, onnxnetwork

TREE = Path(__file__).parent.parent


def test_the_normal_quantile_is_that_of_erfinv():
    share = torch.cat([torch.linspace(-1, 1, 10_001, dtype=torch.float64)[1:-1],
                       1 - torch.logspace(-16, -1, 500, dtype=torch.float64)])  # fmt: skip
    share = torch.cat([share, -share])
    wanted = np.sqrt(2) * share.erfinv()
    torch.testing.assert_close(onnxnetwork.normal_quantile(share), wanted, rtol=1e-14, atol=1e-14)


@given(
    quantiles=st.lists(st.integers(-5, 5), min_size=500, max_size=500),
    values=st.lists(st.floats(-6, 6, width=32), min_size=1),
)
@settings(max_examples=20)
def test_the_scaling_is_the_scaling(quantiles, values):
    """With ties among the quantiles, on the knots, between them and beyond."""
    scaler = QuantileScaler(torch.tensor([sorted(quantiles), range(500)], dtype=torch.float64))
    given = torch.tensor([*values, *range(-6, 7)], dtype=torch.float32)
    given = torch.stack([given, 40 * given + 200], dim=1)
    found, wanted = onnxnetwork.IndexedScaler(scaler)(given), scaler(given)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert found.abs().max() <= LIMIT


def network():
    head = randomise(PoolConfig(width=8, heads=2).build(16, 10))
    return onnxnetwork.DenseNetwork(tiny_encoder(), head).eval()


@torch.inference_mode()
def test_the_dense_network_is_the_packed_one():
    dense, batch = network(), random_batch(SIZES)
    inputs = onnxnetwork.padded(batch, 14)
    scores, logits = dense(**inputs)
    torch.testing.assert_close(logits, dense.head(dense.encoder(batch)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores, logits.softmax(-1))
    padding = ~inputs["mask"]
    inputs["constituents"][padding] = torch.nan
    inputs["ids"][padding] = -1
    assert torch.equal(dense(**inputs)[0], scores)


def test_batches_have_each_size():
    found = list(onnxfile.batches(2020))
    assert [stop - start for start, stop in found] == [1, 7, 1000, 1, 7, 1000, 1, 3]
    assert [start for start, _ in found[1:]] == [stop for _, stop in found[:-1]]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(onnxfile, "find_spec", lambda name: name != "onnxscript")
    with pytest.raises(ConfigError, match=r"onnxscript is missing; .* 'onnx'"):
        onnxfile.require_packages()


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch, jagged):
    with JaggedFile(jagged / "test.h5") as file:
        jets, scores = file.read(0, 3), np.zeros((3, 10), np.float32)
    monkeypatch.setattr(onnxfile, "_model", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(onnxfile, "_difference", lambda *_: float("nan"))
    with pytest.raises(RunError, match=r"a\.onnx: its scores differ by nan .* not kept"):
        onnxfile.write_onnx(tmp_path / "new" / "a.onnx", network(), schema(), jets, scores, {})
    assert list(tmp_path.iterdir()) == []
