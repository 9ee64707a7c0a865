"""Mixed samples: which jets they consist of."""

from __future__ import annotations

import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from reference.numbered import ALL, write_files
from reference.tracks import true_jets, write_true_jets

from jetssl_cli.config import Layer, load
from jetssl_cli.data.jets import concatenate
from jetssl_cli.data.mixed import MixedJets, Mixture
from jetssl_cli.data.stream import JetStream
from jetssl_cli.errors import ConfigError, DataError
from jetssl_cli.runs.loaders import DataConfig


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("mixed")
    return [write_true_jets(folder / f"{seed}.h5", 300 + seed, seed) for seed in range(3)]


def stream(files: list[Path], **settings: object) -> JetStream:
    return JetStream(files, **({"batch_size": 50} | settings))


def mixture(**settings: object) -> Mixture:
    return load(Mixture, [Layer("here", {"signal": "bottom", "background": "light", **settings})])


def labels(files: list[Path]) -> np.ndarray:
    return np.concatenate([true_jets(300 + seed, seed).labels for seed in range(len(files))])


def test_the_samples_have_what_they_say_and_no_jet_twice(files: list[Path]) -> None:
    m1, m2 = mixture(num_signal=20, num_background=70).chosen(stream(files))
    truth = labels(files)
    assert (truth[m1] == 2).sum() == 20
    assert (truth[m1] == 0).sum() == 70
    assert (truth[m2] == 0).all()
    assert len(m2) == 70
    assert len({*m1.tolist(), *m2.tolist()}) == 160


def test_samples_are_nested_in_signal_and_background(files: list[Path]) -> None:
    def sets(**settings: int) -> tuple[set[int], set[int]]:
        m1, m2 = mixture(**settings).chosen(stream(files))
        return set(m1.tolist()), set(m2.tolist())

    small, large = (sets(num_signal=n, num_background=50) for n in (10, 30))
    assert small[0] < large[0]
    assert small[1] == large[1]
    wide = sets(num_signal=10, num_background=80)
    assert small[0] < wide[0]
    assert small[1] < wide[1]
    other = sets(num_signal=10, num_background=50, seed=1)
    assert other[0] != small[0]


def test_half_of_the_background_is_taken_if_no_number_is_given(files: list[Path]) -> None:
    light = int((labels(files) == 0).sum())
    assert mixture(num_signal=3).of(stream(files)).num_background == light // 2


@pytest.mark.parametrize("most", [None, 3])
def test_jets_are_whole_and_their_labels_are_the_samples(
    files: list[Path], most: int | None
) -> None:
    chosen = mixture(num_signal=20, num_background=70)
    reader = MixedJets(stream(files, max_constituents=most), chosen)
    assert reader.schema.classes == ("M2", "M1")
    assert reader.num_jets == 160
    m1, m2 = chosen.chosen(stream(files))
    jets = concatenate([true_jets(300 + seed, seed) for seed in range(3)])
    both = np.sort(np.concatenate([m1, m2]))
    expected = jets.take(both, most)
    batches = list(reader)
    assert np.array_equal(np.concatenate([b.jets.numpy() for b in batches]), expected.jets)
    assert np.array_equal(np.concatenate([b.features.numpy() for b in batches]), expected.features)
    found = np.concatenate([b.labels.numpy() for b in batches])
    assert np.array_equal(found, np.isin(both, m1).astype(int))


def test_every_epoch_has_all_jets_once(files: list[Path]) -> None:
    reader = MixedJets(stream(files, batch_size=40), mixture(num_signal=20, num_background=70))
    each = reader.origin.batches_per_epoch
    assert each == 4
    batches = list(itertools.islice(reader.forever(0), 2 * each))
    epochs = [
        np.concatenate([b.jets.numpy()[:, 0] for b in part])
        for part in (batches[:each], batches[each:])
    ]
    assert (
        sorted(epochs[0])
        == sorted(epochs[1])
        == sorted(np.concatenate([b.jets.numpy()[:, 0] for b in reader]))
    )
    assert epochs[0].tolist() != epochs[1].tolist()


def test_ranks_share_the_jets(files: list[Path]) -> None:
    chosen = mixture(num_signal=20, num_background=70)
    parts = [MixedJets(stream(files, batch_size=40, rank=r, ranks=2), chosen) for r in range(2)]
    first = [next(part.forever(0)).jets[:, 0].tolist() for part in parts]
    second = [list(itertools.islice(part.forever(0), 2))[1].jets[:, 0].tolist() for part in parts]
    assert len({*first[0], *first[1], *second[0], *second[1]}) == 160


def test_validation_has_the_share_of_signal_of_the_training(files: list[Path]) -> None:
    data = DataConfig(
        train=tuple(files[:2]),
        val=(files[2],),
        batch_size=50,
        mixture=mixture(num_signal=20, num_background=80),
    )
    found = np.concatenate([batch.labels.numpy() for batch in data.val_stream()])
    light = int((true_jets(302, 2).labels == 0).sum())
    assert (found == 0).sum() == light // 2
    assert (found == 1).sum() == light // 2 + round(20 * (light // 2) / 80)


def test_only_the_first_jets_are_used_if_so_wanted(files: list[Path]) -> None:
    m1, m2 = mixture(num_signal=5, num_background=20).chosen(stream(files, num_jets=200))
    assert max(*m1, *m2) < 200


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"num_signal": 2000},
            r"of [\d,]+ jets that are read, \d+ are bottom; the mixture needs 2000",
        ),
        ({"num_signal": 1, "num_background": 500}, r"\d+ are light; the mixture needs 1000"),
        ({"signal": "botom", "num_signal": 1}, "no class 'botom'; did you mean 'bottom'"),
        ({"background": "QCD", "num_signal": 1}, "no class 'QCD'"),
    ],
)
def test_what_the_jets_do_not_have_is_told(
    files: list[Path], settings: dict[str, object], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        MixedJets(stream(files), mixture(**settings))


def test_two_classes_are_needed() -> None:
    with pytest.raises(ConfigError, match=re.escape("signal and background are both 'light'")):
        mixture(signal="light", num_signal=1)


def test_workers_hold_the_same_jets(tmp_path: Path) -> None:
    """The reader that a worker gets has no jets yet."""
    paths = write_files(tmp_path)
    reader = MixedJets(
        JetStream(paths, batch_size=10), Mixture(signal="Tbqq", num_signal=5, num_background=6)
    )
    copy = pickle.loads(pickle.dumps(reader))
    for one, other in itertools.islice(zip(reader.forever(1), copy.forever(1), strict=True), 4):
        assert one.jets.tolist() == other.jets.tolist()
    assert all(0 <= number < ALL for number in next(iter(reader)).jets[:, 0].tolist())
