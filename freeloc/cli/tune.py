"""freeloc tune: find the best profile for a model, within a budget of minutes."""

import argparse
import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freeloc.cli.common import Commands, errors_as, from_here, positive, running
from freeloc.errors import FreelocError, ProbeError
from freeloc.probing.cells import RANK, SIZE
from freeloc.tuning import tune

TINY = ("tiny-wan", "tiny-film")
"""The models that come with freeloc."""

MOST_CLIPS, FIRST_SEED = 24, 700_000
"""Number of clips of a tiny model, and the seed of the first video's noise."""

FOLLOWER = """
import sys
sys.path = [folder for folder in sys.path if folder]
from freeloc.cli import main
sys.exit(main())
"""
"""The program of the other processes. `python -m freeloc` would import the files of the current folder first."""

FUNCTION = "tuning"
"""Name of the function in a user's file."""


@from_here()
def run(arguments: argparse.Namespace) -> None:
    """Tune, and print what was found."""
    in_group = any(name in os.environ for name in RANK)
    if arguments.workers > 1:
        torch.set_num_threads(1)
    with _followers(arguments if not in_group else None):
        found = tune(**_material(arguments))
    print(found)
    print(f"\nwritten: {arguments.folder / 'report.md'}, and beside it profile.json with its measurements and pictures")


def _material(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `freeloc.tune`: those of the model, and those of the command line."""
    given = {"minutes": arguments.minutes, "folder": arguments.folder, "seed": arguments.seed}
    if arguments.also:
        given["also"] = arguments.also
    if arguments.times:
        given["times"] = arguments.times
    if arguments.videos is not None:
        given["videos"] = arguments.videos
    return dict(_maker(arguments.subject)()) | given


def _maker(subject: str) -> Callable[[], Mapping[str, Any]]:
    """The function that makes the model and its clips.

    Raises:
        ProbeError: if there is no such function.
    """
    if subject in TINY:
        return partial(tiny, subject)
    place, _, name = subject.partition(":") if ".py" in subject else subject.rpartition(":")
    if place:
        running(place)
    with errors_as(f"cannot read {subject}"):
        if place.endswith(".py"):
            maker = runpy.run_path(place).get(name or FUNCTION)
        else:
            maker = getattr(importlib.import_module(place), name, None) if place else None
    if not callable(maker):
        raise ProbeError(
            f"expected {' or '.join(TINY)}, path/to/file.py with a function {FUNCTION}() that returns the arguments of "
            f"freeloc.tune, or package.module:NAME of one, found '{subject}'"
        )
    found: Callable[[], Mapping[str, Any]] = maker
    return found


def tiny(name: str) -> dict[str, Any]:
    """A tiny model with true clips of 4 times its trained length. The bench reports on other ones."""
    try:
        from freeloc.tiny.models import model_named
    except ImportError as error:
        raise FreelocError(f'the tiny models require more packages ({error}): pip install "freeloc[demo]"') from error
    model = model_named(name)
    numbers = range(min(MOST_CLIPS, model.most_clips))
    prompts = {f"{number:02} {prompt}": number for number, prompt in enumerate(model.prompts(numbers))}

    def generate(prompt: str, latent_frames: int) -> Tensor:
        initial = model.noise([FIRST_SEED + prompts[prompt]], latent_frames)
        return model.sample([prompt[3:]], initial, model.steps, model.guidance)[0].movedim(0, -1)

    real = model.latents(numbers, model.long_frames(4), "tune")
    given = {"model_or_pipeline": model.pipeline, "clips": real, "run": generate, "prompts": [*prompts]}
    return given | {"profile": model.profile}


@contextmanager
def _followers(arguments: argparse.Namespace | None) -> Iterator[None]:
    """Start the other processes, with the same command, and end them after the block."""
    count = arguments.workers if arguments is not None else 1
    if arguments is None or count == 1:
        yield
        return
    (arguments.folder / "pieces" / "round.json").unlink(missing_ok=True)  # of a finished run, which would end them
    command = [sys.executable, "-c", FOLLOWER, "tune", arguments.subject, "--folder", str(arguments.folder)]
    command += ["--minutes", str(arguments.minutes), "--seed", str(arguments.seed), "--workers", str(count)]
    processes = []
    os.environ[SIZE[0]], os.environ[RANK[0]] = str(count), "0"
    try:
        for rank in range(1, count):
            own = os.environ | {RANK[0]: str(rank)}
            processes.append(subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL))
        yield
        for process in processes:
            process.wait(timeout=60)
    finally:
        del os.environ[SIZE[0]], os.environ[RANK[0]]
        for process in processes:
            process.kill()
            process.wait()


def above_zero(text: str) -> float:
    """Read a number above 0 from the command line."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return number


def add(commands: Commands) -> None:
    """Add this command."""
    command = commands.add_parser("tune", help="find the best profile for a model, within a budget of minutes")
    command.add_argument(
        "subject",
        metavar="MODEL",
        help=f"path/to/file.py with a function {FUNCTION}() that returns the arguments of freeloc.tune; or "
        f"package.module:NAME of one; or {' or '.join(TINY)}",
    )
    command.add_argument("--minutes", type=above_zero, default=30.0, help="the budget")
    command.add_argument(
        "--folder",
        type=Path,
        default=Path("freeloc-tune"),
        help="folder of results and measurements, from which an interrupted run goes on",
    )
    command.add_argument("--workers", type=positive, default=1, help="processes; two or more have one thread each")
    command.add_argument("--also", action="append", help="one more method (freeloc methods); may be repeated")
    command.add_argument("--times", type=positive, nargs="+", help="lengths, in trained lengths; by default 2 and 4")
    command.add_argument("--videos", type=int, help="prompts whose videos are checked at the end; by default 4")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=run)
