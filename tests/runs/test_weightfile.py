"""Files of weights: whole, telling of themselves, and never a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from reference.jets import tiny_encoder
from safetensors.torch import load_file, save_file
from torch import nn

from jetssl_cli import __version__
from jetssl_cli.errors import RunError
from jetssl_cli.runs import weightfile


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    weightfile.save(path, tiny_encoder(seed=1))
    return path


def refuse(path, module, *words):
    """Restoring fails with a message that names the file, and leaves the module as it was."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RunError) as error:
        weightfile.restore(path, module)
    assert all(word in str(error.value) for word in (str(path), *words)), error.value
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_come_back_bit_for_bit(saved):
    source, target = tiny_encoder(seed=1), tiny_encoder(seed=2)
    weightfile.restore(saved, target)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
        assert target.state_dict()[name].dtype == value.dtype
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_the_scaling_comes_back_in_double_precision(saved):
    assert load_file(saved)["scaling.jets.quantiles"].dtype == torch.float64


def test_views_and_transposed_weights_are_saved_whole(tmp_path):
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.arange(9.0).view(3, 3).t())
    weightfile.save(tmp_path / "w", layer)
    assert torch.equal(load_file(tmp_path / "w")["weight"], layer.weight)


def test_a_wrong_shape_is_refused(saved):
    refuse(saved, tiny_encoder(embedding_width=9), "embed", "expected", "shape")


def test_missing_and_unexpected_weights_are_refused(saved):
    refuse(saved, tiny_encoder(depth=3), "lacks", "blocks.2")
    refuse(saved, tiny_encoder(depth=1), "unexpected", "blocks.1")
    weights = load_file(saved)
    weights.pop("out.bias")
    weightfile.save(saved, weights)
    refuse(saved, tiny_encoder(), "lacks", "out.bias")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refuse(saved, tiny_encoder(), "not a readable safetensors file")


def test_weights_tell_where_they_come_from(saved):
    facts = {"recipe": "jetclass", "classes": ["QCD", "Tbqq"]}
    weightfile.save(saved, tiny_encoder(seed=1), facts)
    first = saved.read_bytes()
    weights, found = weightfile.read_weights(saved)
    assert found.items() >= {"layout": "1", "code": __version__, **facts}.items()
    weightfile.save(saved, weights, facts)
    assert saved.read_bytes() == first  # the same, byte for byte


def test_what_was_changed_is_refused(saved):
    """Of the weights, and of what they tell."""
    whole = saved.read_bytes()
    for place in (whole.index(__version__.encode()), len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        saved.write_bytes(changed)
        refuse(saved, tiny_encoder(), "is damaged: its hash is not that of its content")


def test_weights_of_no_known_version_are_refused(saved):
    save_file(load_file(saved), saved)
    refuse(saved, tiny_encoder(), "layout None, expected 1", "another version of jetssl")


@pytest.mark.slow
def test_a_head_as_long_as_a_pickle_begins_is_no_pickle(tmp_path):
    """Safetensors begin with the length of their head, pickles with the bytes of 640."""
    path, length = tmp_path / "w", 0
    for more in range(600):
        weightfile.save(path, {"x": torch.ones(1)}, {"more": "m" * more})
        length = int.from_bytes(path.read_bytes()[:8], "little")
        if length >= 640:
            break
    assert length == 640
    assert not weightfile.is_pickle(path)
    assert torch.equal(weightfile.read_weights(path)[0]["x"], torch.ones(1))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_not_even_opened(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved.write_bytes(pickle.dumps(Bomb()))
    refuse(saved, tiny_encoder(), "not a readable safetensors file")
    torch.save(tiny_encoder().state_dict() | {"bomb": Bomb()}, saved)
    refuse(saved, tiny_encoder(), "not a readable safetensors file")
    assert not Path("exploded").exists()


def test_no_file_and_a_folder_are_refused(tmp_path):
    refuse(tmp_path / "none", tiny_encoder(), "no such file")
    refuse(tmp_path, tiny_encoder(), "not a readable safetensors file")


def test_a_failed_save_leaves_what_was_there(saved, monkeypatch):
    old = saved.read_bytes()

    def breaks(weights, path, metadata):
        del weights, metadata
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weightfile, "save_file", breaks)
    with pytest.raises(RunError, match="cannot be written: no space left") as error:
        weightfile.save(saved, tiny_encoder())
    assert str(saved) in str(error.value)
    with pytest.raises(RunError, match="cannot be written"):
        weightfile.save(saved.with_name("new"), tiny_encoder())
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == old


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(weights, path, metadata):
        del weights, metadata
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weightfile, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weightfile.save(tmp_path / "new", tiny_encoder())
    assert list(tmp_path.iterdir()) == []


def test_saving_where_there_is_no_folder(tmp_path):
    with pytest.raises(RunError, match=r"w: cannot be written: No such file or directory$"):
        weightfile.save(tmp_path / "none" / "w", tiny_encoder())
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"w: cannot be written: Not a directory$"):
        weightfile.save(tmp_path / "file" / "w", tiny_encoder())
