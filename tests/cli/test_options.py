"""An option means one thing in all commands: the same type, the same metavar, the same words."""

from __future__ import annotations

import inspect
import re
import shlex
import typing
from collections import defaultdict

import pytest
import typer

from jetssl_cli.cli.app import app
from jetssl_cli.cli.help import WIDEST
from jetssl_cli.errors import ConfigError

MEANING = {
    "--backbone": "Folder of (the|a) pretraining run",
    "--data": "Jagged HDF5 file of ",
    "--dry-run": "nothing",
    "--format": "rich, markdown",
    "--jobs": "at a time|Processes that share the work",
    "--max-constituents": "at most so many|first N constituents",
    "--num-jets": r"\b[jJ]ets\b",
    "--out": "Folder|file|there",
    "--patience": "[Ee]nd .*after N .*validations without",
    "--plots": "Also plot .* as PNG and PDF",
    "--processes": "Some of the (ten|four) processes",
    "--seed": "Seed of ",
    "--seeds": "Trainings of each kind",
    "--steps": "steps|Steps",
    "--train": "Jagged HDF5 file to train on",
    "--val": "Jagged HDF5 file to validate on",
}
"""What the help of an option has to say where its words differ from command to command."""
SEVERAL = ("--backbone", "--num-jets")
"""Of some a scan takes several, of others a training."""
METAVARS = {"--out": {"DIR", "RUN", "FILE.h5"}, "--num-jets": {"N", "N,N,..."}}
"""What comes out is a folder, a run or a file."""


def commands(group=None, name=""):
    """All commands by name, those of groups too."""
    for word, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name}{word} ")
        else:
            yield f"{name}{word}", command


def kind(command, parameter):
    """The type of a value, whether or not it may be left out."""
    function = inspect.unwrap(command.callback)
    hint = typing.get_type_hints(function)[parameter.name]
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    optional = type(None) in typing.get_args(hint)
    return parts[0] if optional else hint


@pytest.fixture(scope="module")
def shared():
    """Option -> how each command that has it describes it: command, type, metavar, help."""
    found = defaultdict(list)
    for name, command in commands():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                row = (name, kind(command, parameter), parameter.metavar, parameter.help)
                found[parameter.opts[0]].append(row)
    return {option: rows for option, rows in found.items() if len(rows) > 1}


def test_one_type(shared):
    for option, rows in shared.items():
        if option not in SEVERAL:
            assert len({row[1] for row in rows}) == 1, f"{option}: {rows}"


def test_one_metavar(shared):
    for option, rows in shared.items():
        found = {metavar for _, _, metavar, _ in rows}
        assert len(found) == 1 or found <= METAVARS.get(option, set()), f"{option}: {rows}"


def test_one_meaning(shared):
    for option, rows in shared.items():
        words = {told for *_, told in rows}
        if option in MEANING:
            wrong = [row for row in rows if not re.search(MEANING[option], row[-1])]
            assert not wrong, f"{option}: {wrong}"
        else:
            assert len(words) == 1, f"{option}: {words}"


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_examples_can_be_pasted(name, monkeypatch, capsys):
    """From a terminal of 80 characters: what continues a line is the last of it."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        app([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert "<bool>" not in shown
    text = shown.split("\nExamples:\n\n")[1]
    assert all(len(line) <= WIDEST for line in text.splitlines())
    known = dict(commands())
    for example in text.strip().replace(" \\\n", " ").splitlines():
        if example:
            words = shlex.split(example.partition("jetssl ")[2])
            count = len(name.split())
            assert " ".join(words[:count]) == name
            known[name].make_context(name, words[count:])


def typed(command, parameter):
    """An option with a value, or an argument, as it may be typed."""
    if getattr(parameter, "is_flag", False):
        return [parameter.opts[0]]
    value = "1000" if kind(command, parameter) in (int, float) else "a"
    argument = parameter.param_type_name == "argument"
    return [value] if argument else [parameter.opts[0], *[value] * parameter.nargs]


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_an_option_of_one_value_is_given_once(name, tmp_path, monkeypatch):
    """Of several the last alone was taken; flags say the same again, lists have all of them."""
    monkeypatch.chdir(tmp_path)
    command = dict(commands())[name]
    options = [each for each in command.params if each.param_type_name == "option"]
    required = [each for each in command.params if each.required]
    for option in options:
        words = typed(command, option)
        others = [typed(command, each) for each in required if each is not option]
        once = [*words, *(word for other in others for word in other)]
        command.make_context(name, [*once])
        if option.is_flag or option.multiple:
            command.make_context(name, [*once, *words])
        else:
            with pytest.raises(ConfigError, match=f"^{option.opts[0]} was given twice$"):
                command.make_context(name, [*once, *words])
            command.make_context(name, [*once, *words], resilient_parsing=True)  # a shell completes


def test_all_commands_answer_in_json(shared):
    assert {name for name, *_ in shared["--json"]} == {name for name, _ in commands()}


def test_rules_are_of_options_that_there_are(shared):
    assert shared.keys() >= MEANING.keys() | METAVARS.keys()
