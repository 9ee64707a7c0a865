"""Truth about constituents: on its way from the file to the batch, and where it is missing."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference.numbered import write_files
from reference.tracks import RECIPE, true_jets, write_true_jets

from jetssl_cli.batch import CPU
from jetssl_cli.config import Layer, load
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.recipe import Recipe
from jetssl_cli.data.stream import JetStream
from jetssl_cli.errors import DataError

RECIPE_COLUMNS = list(RECIPE.constituents.truth)
ORIGINS = ("primary", "from_c", "from_b", "other")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_jets(tmp_path_factory.mktemp("truth") / "jets.h5", 300, 7)


@pytest.mark.parametrize("wanted", [("vertex",), ("origin",), ("origin", "vertex")])
def test_a_batch_has_the_columns_that_were_asked_for(path: Path, wanted: tuple[str, ...]) -> None:
    stream = JetStream([path], batch_size=80, max_constituents=5, truth=dict.fromkeys(wanted))
    jets = true_jets(300, 7).first(5)
    expected = torch.from_numpy(jets.truth[:, [RECIPE_COLUMNS.index(name) for name in wanted]])
    for reader in (stream, JetsInMemory(stream)):
        found = torch.cat([batch.truth for batch in reader])
        assert torch.equal(found, expected.long())


@pytest.mark.parametrize("in_memory", [False, True])
def test_truth_is_shuffled_with_its_constituents(path: Path, in_memory: bool) -> None:
    """The directions of all constituents differ, so each tells its truth."""
    stream = JetStream([path], batch_size=64, truth={"origin": ORIGINS})
    reader = JetsInMemory(stream) if in_memory else stream
    jets = true_jets(300, 7)
    directions = map(tuple, jets.features[:, 1:3].tolist())
    known = dict(zip(directions, jets.truth[:, 1].tolist(), strict=True))
    assert len(known) == len(jets.features)
    for batch in itertools.islice(reader.forever(0), 6):
        directions = map(tuple, batch.features[:, 1:3].tolist())
        assert [known[direction] for direction in directions] == batch.truth[:, 0].tolist()


def test_truth_is_not_read_unless_it_is_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []
    original = JaggedFile.read

    def spy(self, start=0, stop=None, *, truth=True):
        read.append(truth)
        return original(self, start, stop, truth=truth)

    monkeypatch.setattr(JaggedFile, "read", spy)
    assert all(batch.truth is None for batch in JetStream([path], batch_size=100))
    assert not any(read)
    list(JetStream([path], batch_size=100, truth={"vertex": None}))
    assert read[-1]


def test_truth_stays_with_its_constituents_in_all_that_is_done_to_a_batch(path: Path) -> None:
    (batch,) = JetStream([path], batch_size=300, truth={"vertex": None})
    chosen = torch.rand(batch.packing.total, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(batch.keep(chosen).truth, batch.truth[chosen])
    assert torch.equal(batch.to(CPU).truth, batch.truth)
    (without,) = JetStream([path], batch_size=300)
    assert without.keep(chosen).truth is None
    assert without.to(CPU).truth is None


def test_data_without_the_truth_are_refused(tmp_path: Path) -> None:
    (path, *_) = write_files(tmp_path)
    with pytest.raises(DataError, match=r"0\.h5: has no truth 'vertex' about constituents"):
        JetStream([path], batch_size=10, truth={"vertex": None})


def test_data_with_another_truth_are_told(path: Path) -> None:
    with pytest.raises(DataError, match=r"has no truth 'mother' .*; it has vertex, origin"):
        JetStream([path], batch_size=10, truth={"mother": None})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"primary": 0, "from_b": 1, "from_c": 2, "other": 3}, "0 primary, 1 from_b, 2 from_c"),
        ({"primary": 0, "from_c": 1, "other": 2}, "0 primary, 1 from_c, 2 other"),
        (None, "nothing that its recipe names"),
    ],
)
def test_truth_of_another_meaning_is_refused(
    tmp_path: Path, values: dict[str, int] | None, told: str
) -> None:
    raw = yaml.safe_load(RECIPE.text)
    raw["constituents"]["truth"]["origin"]["values"] = values
    path = tmp_path / "other.h5"
    write_true_jets(path, 10, 0, load(Recipe, [Layer("here", raw)]))
    with pytest.raises(DataError, match=f"'origin' means {told}.*needs 0 primary, 1 from_c, 2"):
        JetStream([path], batch_size=10, truth={"origin": ORIGINS})
    assert np.array_equal(
        next(iter(JetStream([path], batch_size=10, truth={"origin": None}))).truth[:, 0].numpy(),
        true_jets(10, 0).truth[:, 1],
    )
