"""The jets of a step that was not finite are found again, whatever reader gave them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.numbered import ALL, RECIPE, jets_of, write_files
from reference.tracks import RECIPE as TRACKS
from reference.tracks import true_jets

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.mixed import MixedJets, Mixture
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.write import write
from jetssl_cli.runs import diverged

CHOSEN = [np.arange(0, 50, 3), np.array([0]), np.arange(5, 69, 2)]


def readers(files, rank, ranks):
    def stream(**settings):
        return JetStream(files, batch_size=7, rank=rank, ranks=ranks, **settings)

    mixture = Mixture(
        signal=RECIPE.labels.classes[1], background=RECIPE.labels.classes[0], num_signal=5
    )
    return {
        "stream": stream(),
        "few": stream(num_jets=90),
        "subset": stream(chosen=CHOSEN),
        "memory": JetsInMemory(stream()),
        "memory of a subset": JetsInMemory(stream(chosen=CHOSEN)),
        "mixed": MixedJets(stream(), mixture),
    }


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "kind", ["stream", "few", "subset", "memory", "memory of a subset", "mixed"]
)
def test_the_places_of_a_batch_are_those_of_its_jets(tmp_path, kind, rank):
    """Each jet carries its number; over three epochs, from any batch on."""
    reader = readers(write_files(tmp_path), rank, 2)[kind]
    begins = np.array([0, 50, 51])
    batches = reader.forever(seed=4)
    for number in range(3 * reader.origin.batches_per_epoch):
        found = next(batches).jets[:, 0].numpy().astype(int)
        places = reader.places(reader.origin.state_after(4, number))
        assert (begins[places[:, 0]] + places[:, 1]).tolist() == found.tolist()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_set_aside_is_what_the_data_hold(tmp_path, precision):
    files = write_files(tmp_path, precision=precision)
    reader = JetStream(files, batch_size=7, max_constituents=2)
    diverged.set_aside(tmp_path, reader, seed=4, step=3, parts=2, rank=0)
    batches = reader.forever(seed=4)
    taken = [next(batches).jets[:, 0].long() for _ in range(8)][6:]
    wanted = torch.cat(taken).unique().tolist()
    with JaggedFile(tmp_path / "diverged" / "step-3.h5") as file:
        jets, sources = file.read(), file.sources
    assert jets.jets[:, 0].astype(int).tolist() == wanted
    whole = jets_of(0, ALL).take(np.array(wanted))
    assert np.array_equal(jets.features, whole.features)  # all constituents, not the first two
    assert np.array_equal(jets.labels, whole.labels)
    first = [jet for jet in wanted if jet < 50]
    assert sources[0] == f"{files[0]}: jets {', '.join(map(str, first))}"
    told = diverged.told(tmp_path, 3)
    assert f"step-3.h5 holds its {len(wanted)} jets ({files[0]}: {first[0]}, " in told
    assert diverged.told(tmp_path, 2) == diverged.told(tmp_path, 30) == ""


def test_a_long_list_of_jets_is_cut_in_the_message(tmp_path):
    files = write_files(tmp_path)
    reader = JetStream(files, batch_size=60)
    diverged.set_aside(tmp_path, reader, seed=0, step=0, parts=1, rank=1)
    told = diverged.told(tmp_path, 0)
    assert "step-0-process-1.h5 holds its 60 jets" in told
    assert ", ...)" in told
    assert len(told) < 400 + len(str(tmp_path)) * 4


def test_where_nothing_can_be_written_the_run_still_ends_with_its_own_message(tmp_path, capsys):
    files = write_files(tmp_path)
    (tmp_path / "diverged").write_text("in the way")
    diverged.set_aside(tmp_path, JetStream(files, batch_size=7), seed=0, step=5, parts=1, rank=0)
    assert "warning: the jets of step 5 could not be set aside" in capsys.readouterr().err
    assert diverged.told(tmp_path, 5) == ""


def test_truth_is_set_aside_too(tmp_path):
    with write(tmp_path / "a.h5", TRACKS, []) as writer:
        writer.append(true_jets(30, 1))
    reader = JetStream([tmp_path / "a.h5"], batch_size=30)
    diverged.set_aside(tmp_path, reader, seed=0, step=0, parts=1, rank=0)
    with (
        JaggedFile(tmp_path / "diverged" / "step-0.h5") as file,
        JaggedFile(tmp_path / "a.h5") as of,
    ):
        assert np.array_equal(file.read().truth, of.read().truth)
