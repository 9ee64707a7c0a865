"""What goes wrong is told by its reason, wherever it came from."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jetssl_cli.errors import reason

PACKAGE = Path(__file__).parent.parent / "jetssl_cli"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", ".x.partial"), "Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("of a library,\n  in two lines"), "of a library, in two lines"),
        (KeyError("branch"), "branch"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_reason_alone(error, told):
    assert reason(error) == told


def test_of_safetensors_too(tmp_path):
    """Its errors, which are no OSError, name a file of its own."""
    with pytest.raises(Exception, match="os error") as error:
        save_file({"x": torch.zeros(3)}, tmp_path / "none" / "x")
    assert reason(error.value) == os.strerror(2)


def names(node):
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def caught():
    """Places of the package where an error of the system is put into a message as it is."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type and "OSError" in names(node.type):
                for part in ast.walk(node):
                    value = part.value if isinstance(part, ast.FormattedValue) else None
                    if isinstance(value, ast.Name) and value.id == node.name:
                        yield f"{path.relative_to(PACKAGE)}:{part.lineno}"


def test_no_message_shows_the_number_of_an_error():
    assert [*caught()] == []
