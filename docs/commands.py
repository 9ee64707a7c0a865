"""The reference of all commands, as typer writes it: a page that is made when the site is built."""

from __future__ import annotations

import re
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TYPER = ("-m", "typer", "jetssl_cli.cli.app", "utils", "docs", "--name", "jetssl")

EXAMPLE = re.compile(r"^(?:\w+=\S+ )?jetssl .+(?:\n    .+)*", re.M)
"""A command of one line or more."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    made = subprocess.run([sys.executable, *TYPER], capture_output=True, text=True, check=True)
    text = made.stdout.replace("# `jetssl`", "# Commands", 1)
    text = EXAMPLE.sub(r"```sh\n\g<0>\n```", text)
    files.append(File.generated(config, "commands.md", content=text))
    return files
