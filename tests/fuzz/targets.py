"""What is fuzzed: the readers that are given files and words from elsewhere.

The rule for each: whatever the bytes, it returns a valid object or raises a JetSSLError with a
clear message; never anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fuzz import mutate
from torch import nn

from jetssl_cli.config import Layer, load, to_yaml
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import Recipe, load_recipe, parse_recipe, schema_of
from jetssl_cli.errors import JetSSLError
from jetssl_cli.runs import checkpoint, snapshot, weightfile
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.pretrain import PretrainConfig, load_config
from jetssl_cli.scores.scorefile import read_scores
from jetssl_cli.scores.tasks import evaluate_tasks

CORPUS = Path(__file__).parent / "corpus"
OPTIONS = Layer("options", {"out": "run", "data": {"train": "a.h5", "val": "b.h5"}})


class BrokenRuleError(Exception):
    """What was returned, or the message of an error, is not what it should be."""


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    file: str
    """Name under which the bytes are written."""
    ways: tuple[Callable[[Path], object], ...]
    """What is done with the file, each by itself."""
    mutate: Callable[..., bytes]
    """See ``mutate.py``."""
    lines: bool = False
    """A message may have several lines: one for each mistake of a config."""

    def run(self, path: Path) -> str:
        """Do all of it; what came out, for each way: ``valid`` or the message.

        Raises:
            Exception: the rule is broken.
        """
        return "; ".join(self._run(way, path) for way in self.ways)

    def _run(self, way: Callable[[Path], object], path: Path) -> str:
        try:
            way(path)
        except JetSSLError as err:
            text = str(err)
            lines = text.split("\n") if self.lines else [text]
            if not all(line.strip() and line.isprintable() for line in lines):
                raise BrokenRuleError(f"not a clear line: {text!r}") from None
            return text
        return "valid"


def _recipe(path: Path) -> None:
    recipe = load_recipe(str(path))
    if parse_recipe(recipe.text, "text") != recipe or not recipe.branches:
        raise BrokenRuleError("the recipe does not come back from its text")
    assert len(schema_of(recipe).classes) > 1
    assert recipe.constituent_branches is not None


def _config(path: Path) -> None:
    _comes_back(load_config("ssfm", "tiny", OPTIONS, config=path))


def _overrides(path: Path) -> None:
    words = path.read_bytes().decode(errors="surrogateescape").split("\n")
    _comes_back(load_config("ssfm", "tiny", OPTIONS, overrides=words))


def _run_config(path: Path) -> None:
    kind = checkpoint.read_command(path.parent)
    cls = FinetuneConfig if kind == "finetune" else PretrainConfig
    _comes_back(checkpoint.read_config(path.parent, cls))


def _run_schema(path: Path) -> None:
    schema = path.with_name(checkpoint.SCHEMA)
    schema.write_bytes(path.read_bytes())
    checkpoint.read_schema(path.parent)


def _comes_back(cfg: PretrainConfig | FinetuneConfig) -> None:
    text = to_yaml(cfg)
    again = load(type(cfg), [Layer("text", checkpoint.yaml.safe_load(text))])
    if again != cfg:
        raise BrokenRuleError("the configuration does not come back from its text")


def _jagged(path: Path) -> None:
    with JaggedFile(path) as file:
        first = file.read(0, 2)
        whole = file.read()
        if len(first) != min(2, file.num_jets) or len(whole) != file.num_jets:
            raise BrokenRuleError("the number of jets is not that of the file")
        assert file.labels().shape == (file.num_jets,)
        assert file.num_bytes >= 0
        assert file.num_constituents == len(whole.features)
        file.read_jets(0, file.num_jets)
        assert file.arrays


def _jagged_texts(path: Path) -> None:
    with JaggedFile(path) as file:
        assert isinstance(file.recipe, Recipe)
        assert isinstance(file.left_out, dict)
        assert isinstance(file.sources, list)


def _scores(path: Path) -> None:
    found = read_scores(path)
    if found.scores.shape != (len(found.labels), len(found.classes)):
        raise BrokenRuleError("not a score for each jet and class")
    assert found.identity()
    assert found.in_order(sorted(found.classes)).classes == tuple(sorted(found.classes))


def _tasks(path: Path) -> None:
    for row in evaluate_tasks([path]):
        assert row.lines()


def network() -> nn.Module:
    """A module with weights of all kinds that a network of ours has."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    module.register_buffer("quantiles", torch.arange(4, dtype=torch.float64))
    module.register_buffer("steps", torch.tensor(7))
    return module


def _weights(path: Path) -> None:
    weightfile.restore(path, network())


def _snapshot(path: Path) -> None:
    found = snapshot.read(path)
    assert found.reader is not None
    best = found.facts["best"]
    assert len(best) == 3
    assert found.facts["steps"] >= 0
    assert found.facts["seconds"] >= 0
    assert dict(found.facts["latest"]) is not None


TARGETS = {
    "recipe": Target("recipe.yaml", (_recipe,), mutate.text, lines=True),
    "config": Target("config.yaml", (_config, _run_config, _run_schema), mutate.text, lines=True),
    "overrides": Target("words", (_overrides,), mutate.text, lines=True),
    "jagged": Target("jets.h5", (_jagged, _jagged_texts), mutate.hdf5),
    "scores": Target("scores.h5", (_scores, _tasks), mutate.hdf5),
    "weights": Target("000000001.safetensors", (_weights, _snapshot), mutate.tensors),
}


def seeds(name: str) -> list[bytes]:
    """The valid inputs of a target, to begin with."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
