"""The command ``freeloc``."""

import argparse
import sys

from freeloc.cli import models, probe, profiles, tune, videos
from freeloc.errors import FreelocError
from freeloc.untrusted import readable


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="freeloc", description="Long videos from short-clip video models, untrained.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for module in (videos, models, probe, tune, profiles):
        module.add(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Entry point. Errors of freeloc are printed as one message, without a traceback."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except FreelocError as error:
        print(f"freeloc: {readable(str(error))}", file=sys.stderr)
        return 2
