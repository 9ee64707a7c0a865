"""``jetssl generate``: jets from a pretrained network, and how far they are from true ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt

from jetssl_cli.batch import CPU, JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import Recipe, schema_of
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.write import write
from jetssl_cli.errors import ConfigError, RunError
from jetssl_cli.objectives.objective import Sampling
from jetssl_cli.progress import progress
from jetssl_cli.runs.checkpoint import match
from jetssl_cli.runs.pretrain import load_pretrained
from jetssl_cli.scores.distances import Distance, compare, compare_jets

JETS_COMPARED = 50_000
"""The distances are those of the first so many jets, which are held in memory."""


class GenerateConfig(Strict):
    """What to generate jets with, and where to."""

    run: Path
    """Folder of a pretraining run of a method that generates."""
    data: Path
    """Jagged file of the jets that are continued, or whose features are given."""
    out: Path
    """Jagged file of the generated jets."""
    num_jets: PositiveInt | None = None
    """Generate the first so many jets of the file only."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the masks and of everything that is drawn."""
    steps: PositiveInt | None = None
    """Steps of the integration (ssfm)."""
    temperature: PositiveFloat | None = None
    """Of the softmax that words are drawn from (gpt)."""
    batch_size: PositiveInt = 500
    """Jets at a time; with another, other numbers are drawn."""
    overwrite: bool = False
    """Replace the output if it is there already."""


class GenerateReport(Strict):
    """What was generated."""

    out: Path
    num_jets: int
    num_constituents: int
    """Constituents that were generated."""
    num_compared: int
    """Jets that the distances are those of."""
    distances: tuple[Distance, ...]
    """Between generated and true constituents, and between whole jets."""


def generate(cfg: GenerateConfig) -> GenerateReport:
    """Generate a jet for each of a file, and write them in its format, one batch at a time.

    Jets have at most the constituents that the network was trained on. Constituents are stored in
    the order of the recipe; labels and jet features are those of the source, also where they do
    not agree with the generated constituents. Truth about constituents is left out.

    Raises:
        ConfigError: a setting is that of another method.
        DataError: the data cannot be read, or the output not be written.
        RunError: not a pretraining run of a method that generates, data that do not fit it, or the
            output is there already.
    """
    if cfg.out.resolve() == cfg.data.resolve():
        raise RunError(f"{cfg.out}: is the file of the jets; choose another name")
    if cfg.out.is_dir():
        raise RunError(f"{cfg.out}: is a folder; --out is a file")
    if cfg.out.exists() and not cfg.overwrite:
        raise RunError(f"{cfg.out}: is there already; choose another name or --overwrite")
    run_cfg, schema, objective = load_pretrained(cfg.run)
    if not objective.generates:
        raise RunError(
            f"{cfg.run}: was pretrained with {run_cfg.objective.name}, which does not generate; "
            "ssfm fills in hidden constituents, gpt writes whole jets"
        )
    how = _sampling(cfg, run_cfg.objective.name)
    with JaggedFile(cfg.data) as file:
        recipe, precision = _without_truth(file.recipe), file.precision
    stream = JetStream(
        [cfg.data],
        batch_size=cfg.batch_size,
        max_constituents=min(run_cfg.data.max_constituents, recipe.max_constituents),
        num_jets=cfg.num_jets,
        subjet_radius=objective.subjet_radius,
    )
    match(stream.schema, schema, str(cfg.data), cfg.run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = objective.to(device)
    rng = torch.Generator(device).manual_seed(cfg.seed)
    compared = _Compared()
    with (
        write(cfg.out, recipe, [str(cfg.data)], precision=precision) as writer,
        progress(f"generate {cfg.run.name}", stream.num_jets, "jets") as advance,
        torch.inference_mode(),
    ):
        for batch in stream:
            found = objective.generate(batch.to(device), rng, how)
            if not found.made.features.isfinite().all():
                raise RunError(f"{cfg.run}: the network generates numbers that are not finite")
            made, kept = _physical(objective.encoder.scaling, found.made), found.kept.cpu()
            jets = _in_order(_joined(batch.keep(kept), made), recipe)
            writer.append(replace(jets, features=jets.features.astype(precision)))
            compared.add(_arrays(made), _arrays(batch.keep(~kept)), jets, _arrays(batch))
            advance(batch.packing.num_jets)
    return compared.report(cfg.out, recipe)


def _sampling(cfg: GenerateConfig, method: str) -> Sampling:
    for option, value, owner in (
        ("--integration-steps", cfg.steps, "ssfm"),
        ("--temperature", cfg.temperature, "gpt"),
    ):
        if value is not None and method != owner:
            raise ConfigError(f"{option}: is for {owner}; {cfg.run} was pretrained with {method}")
    usual = Sampling()
    return Sampling(cfg.steps or usual.steps, cfg.temperature or usual.temperature)


class _Compared:
    """Generated and true jets, the first of them held to be compared."""

    def __init__(self) -> None:
        self._num_jets = self._num_constituents = self._num_compared = 0
        self._parts: list[tuple[JetArrays, ...]] = []

    def add(self, made: JetArrays, hidden: JetArrays, jets: JetArrays, true: JetArrays) -> None:
        """Take generated constituents, those they stand for, and the whole jets of both."""
        self._num_jets += len(jets)
        self._num_constituents += len(made.ids)
        if self._num_compared < JETS_COMPARED:
            self._parts.append((made, hidden, jets, true))
            self._num_compared += len(jets)

    def report(self, out: Path, recipe: Recipe) -> GenerateReport:
        """The distances, and how much there is."""
        made, hidden, jets, true = map(concatenate, zip(*self._parts, strict=True))
        schema = schema_of(recipe)
        return GenerateReport(
            out=out,
            num_jets=self._num_jets,
            num_constituents=self._num_constituents,
            num_compared=self._num_compared,
            distances=(
                *compare(made, hidden, schema=schema),
                *compare_jets(jets, true, schema=schema),
            ),
        )


def _physical(scaling: torch.nn.Module, scaled: JetBatch) -> JetBatch:
    """The batch in physical units, on the host; what a particle does not have is 0."""
    assert isinstance(scaling, Scaling)
    features = scaling.constituents.inverse(scaled.features)
    features = features.masked_fill(scaling.missing(scaled), 0)
    return JetBatch(
        features=features.cpu(),
        ids=scaled.ids.cpu(),
        jets=scaled.jets.cpu(),
        packing=scaled.packing.to(CPU),
        labels=scaled.labels.cpu(),
    )


def _joined(kept: JetBatch, made: JetBatch) -> JetBatch:
    """The constituents of both together; labels and jet features of the first."""
    packing, first, second = kept.packing.join(made.packing)

    def lay(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        empty = one.new_empty(packing.total, *one.shape[1:])
        return empty.index_copy(0, first, one).index_copy(0, second, two)

    return replace(
        kept,
        features=lay(kept.features, made.features),
        ids=lay(kept.ids, made.ids),
        packing=packing,
        subjets=None,
    )


def _in_order(batch: JetBatch, recipe: Recipe) -> JetArrays:
    """The jets with their constituents in the order of the recipe."""
    jets = _arrays(batch)
    column = list(recipe.constituents.stored).index(recipe.constituents.order_by)
    owner = np.repeat(np.arange(len(jets)), jets.sizes)
    return jets.reorder(np.lexsort((-jets.features[:, column], owner)))


def _arrays(batch: JetBatch) -> JetArrays:
    """The batch as arrays, without truth about the constituents."""
    return JetArrays(
        features=batch.features.numpy(),
        ids=batch.ids.numpy().astype(np.uint8),
        truth=np.zeros((len(batch.ids), 0), np.int32),
        sizes=batch.packing.host_sizes.numpy(),
        jets=batch.jets.numpy(),
        labels=batch.labels.numpy().astype(np.int16),
    )


def _without_truth(recipe: Recipe) -> Recipe:
    """The recipe of the same columns, but for the truth about constituents."""
    constituents = recipe.constituents.model_copy(update={"truth": {}})
    return recipe.model_copy(update={"constituents": constituents})
