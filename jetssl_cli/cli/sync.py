"""The command ``sync``: what MLflow has of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.options import AsJson
from jetssl_cli.cli.printing import print_json
from jetssl_cli.errors import JetSSLError

if TYPE_CHECKING:
    from jetssl_cli.runs.sync import SyncReport

room = typer.Typer()


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl sync runs/ssfm",
        "MLFLOW_TRACKING_URI=http://localhost:5000 jetssl sync runs/*",
    ),
)
def sync(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings that have ended.")
    ],
    as_json: AsJson = False,
) -> None:
    """Send to MLflow what it lacks of trainings: it was absent, slow, or switched off.

    Parameters, measurements and how the training ended. What MLflow has is not sent again.
    """
    from jetssl_cli.runs.sync import SyncConfig
    from jetssl_cli.runs.sync import sync as run

    reports = []
    try:
        for report in run(SyncConfig(runs=tuple(runs))):
            reports.append(report)
            if not as_json:
                _print(report)
    except JetSSLError:
        if as_json and reports:  # what was sent before one failed
            print_json(reports)
        raise
    if as_json:
        print_json(reports)


def _print(report: SyncReport) -> None:
    told = ["parameters"] * report.parameters
    told += [f"{report.measurements:,} measurements"] * bool(report.measurements)
    told += [f"status {report.status}"] * bool(report.status)
    what = f"{', '.join(told)} sent to" if told else "nothing to send, all is at"
    new = ", new" if report.made else ""
    typer.echo(f"{report.run}: {what} {report.uri} (run {report.run_id}{new})")
