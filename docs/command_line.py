"""Writes the reference page of the command line from its parser: python docs/command_line.py"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from freeloc.cli import parser

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """# Command line

<!-- written by docs/command_line.py -->

You want to use freeloc from a shell. `python -m freeloc` is the same command.

Exit status: 0 is success, 1 is a negative answer (a difference, a failed check), 2 is an error. Errors are one message.
"""


def sections(command: argparse.ArgumentParser, purpose: str = "") -> Iterator[str]:
    """A section for a command, and one for each command below it."""
    below = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    own = [action for action in command._actions if action not in below and action.dest != "help"]
    if purpose:
        yield f"\n## {command.prog}\n\n{purpose[0].upper()}{purpose[1:]}.\n"
    if own:
        yield "\n| argument | meaning | default |\n|---|---|---|\n"
    for action in own:
        yield f"| {_names(action)} | {_meaning(action)} | {_default(action)} |\n"
    for action in below:
        for choice in action._choices_actions:
            yield from sections(action.choices[choice.dest], choice.help or "")


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    return ", ".join(f"`{option}`" for option in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    choices = f"one of {', '.join(f'`{choice}`' for choice in action.choices)}" if action.choices else ""
    return ": ".join(part for part in (action.help, choices) if part)


def _default(action: argparse.Action) -> str:
    if action.required and action.nargs != "*":
        return "required"
    if action.dest == "device":
        return "`cuda` if PyTorch sees a GPU, else `cpu`"
    return "" if action.default is None or action.default is False else f"`{action.default}`"


def page() -> str:
    """The page as it should be."""
    return HEAD + "".join(sections(parser()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
