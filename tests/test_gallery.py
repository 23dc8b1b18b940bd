"""docs/gallery.md: its commands run, in its order, unless they are marked. tests/test_docs.py runs its Python."""

import re
import shlex
from pathlib import Path

import pytest

from freeloc.cli import main, parser

PAGE = Path(__file__).parents[1] / "docs" / "gallery.md"
ROW = re.compile(r"^\| (?P<star>\* )?`(?P<command>[^`]+)` \| \S.* \|$", re.MULTILINE)


def commands(is_marked):
    return [row["command"] for row in ROW.finditer(PAGE.read_text(encoding="utf-8")) if bool(row["star"]) == is_marked]


@pytest.mark.slow
def test_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in commands(is_marked=False):
        name, *arguments = shlex.split(command)
        assert name == "freeloc"
        assert main(arguments) == 0, command
        assert capsys.readouterr().out, command


@pytest.mark.parametrize("command", [each for each in commands(is_marked=True) if each.startswith("freeloc")])
def test_marked_commands_have_the_arguments_that_the_parser_knows(command):
    parser().parse_args(shlex.split(command)[1:])


def test_every_command_is_in_the_gallery():
    text = " ".join(commands(is_marked=False) + commands(is_marked=True))
    action = next(action for action in parser()._actions if action.choices)
    assert {name for name in action.choices if f"freeloc {name}" not in text} == set()
