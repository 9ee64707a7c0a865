"""``jetssl export``: the scores of a finetuned network on a data set."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import PositiveInt

from jetssl_cli.config import Strict
from jetssl_cli.data.stream import JetStream
from jetssl_cli.errors import RunError
from jetssl_cli.progress import progress
from jetssl_cli.runs.checkpoint import match
from jetssl_cli.runs.finetune import load_classifier
from jetssl_cli.scores.scorefile import write_scores
from jetssl_cli.scores.tasks import exporter


class ExportConfig(Strict):
    """What to export, and where to."""

    run: Path
    """Folder of a finetuning run."""
    data: Path
    """Jagged file of the jets."""
    out: Path
    """The score file."""
    batch_size: PositiveInt = 1000
    """Jets at a time."""
    overwrite: bool = False
    """Replace the score file if it is there already."""


def export(cfg: ExportConfig) -> Path:
    """Write scores, logits, labels and jet features of every jet, one batch at a time.

    Of a task other than classification, what ``trackfile.py`` and ``sic.py`` say.
    The network runs in float32. Jets are cut to the constituents that it was trained on.

    Raises:
        DataError: the data cannot be read, or the scores not be written.
        RunError: not a finetuning run, data that do not fit it, or the output is there already.
    """
    if cfg.out.resolve() == cfg.data.resolve():
        raise RunError(f"{cfg.out}: is the file of the jets; choose another name")
    if cfg.out.exists() and not cfg.overwrite:
        raise RunError(f"{cfg.out}: is there already; choose another name or --overwrite")
    export_task = exporter(cfg.run)
    if export_task is not None:
        return export_task(cfg.run, cfg.data, cfg.out, cfg.batch_size)
    run_cfg, schema, classifier = load_classifier(cfg.run)
    stream = JetStream(
        [cfg.data], batch_size=cfg.batch_size, max_constituents=run_cfg.data.max_constituents
    )
    match(stream.schema, schema, str(cfg.data), cfg.run)
    if stream.schema.classes != schema.classes:
        raise RunError(
            f"{cfg.data}: its classes are {', '.join(stream.schema.classes)}; "
            f"{cfg.run} was trained on {', '.join(schema.classes)}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = classifier.to(device)
    columns = [feature.name for feature in schema.jets]
    with (
        write_scores(
            cfg.out,
            classes=schema.classes,
            jet_columns=columns,
            run=str(cfg.run),
            data=str(cfg.data),
        ) as writer,
        progress(f"export {cfg.run.name}", stream.num_jets, "jets") as advance,
        torch.inference_mode(),
    ):
        for batch in stream:
            logits = classifier.logits(batch.to(device)).float()
            if not logits.isfinite().all():
                raise RunError(f"{cfg.run}: the network answers with numbers that are not finite")
            writer.append(
                logits.softmax(-1).cpu().numpy(),
                logits.cpu().numpy(),
                batch.labels.numpy(),
                batch.jets.numpy(),
            )
            advance(batch.packing.num_jets)
    return cfg.out
