"""freeloc demo, bench, measure: videos of the tiny model, and measures of any video."""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from freeloc.cli.common import Commands, positive
from freeloc.errors import FreelocError
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from freeloc.metrics.streaming import Measured

T = TypeVar("T")


def demo(arguments: argparse.Namespace) -> None:
    """Run the tiny model at several times its trained length, with direct sampling and with freeloc."""
    try:
        from freeloc.tiny.demo import run
    except ImportError as error:
        raise FreelocError(f'the demo requires more packages ({error}): pip install "freeloc[demo]"') from error
    run(arguments.output, arguments.times, arguments.seed, arguments.steps, arguments.method)


def bench(arguments: argparse.Namespace) -> None:
    """Compare methods on a tiny model."""
    try:
        from freeloc.tiny.losses import bench_losses
        from freeloc.tiny.results import bench as run_bench
        from freeloc.tiny.settings import loss_settings
        from freeloc.tiny.sizes import full, quick, single_layers
    except ImportError as error:
        raise FreelocError(f'the bench requires more packages ({error}): pip install "freeloc[bench]"') from error
    long, model = arguments.full or arguments.layers, arguments.model
    name = f"freeloc-bench{'-full' if long else ''}{'' if model == 'tiny-wan' else f'-{model}'}"
    folder = arguments.output or Path(name)
    if arguments.losses:
        settings = loss_settings(arguments.settings, arguments.also, model)
        print(bench_losses(folder, settings, model, arguments.times, arguments.clips, arguments.workers))
        print(f"\nwritten: {folder / 'losses.csv'}")
        return
    size = (single_layers if arguments.layers else full if arguments.full else quick)(model)
    size = size.with_only(arguments.settings).with_others(arguments.also)
    size.only(arguments.part)  # an unknown part is refused before anything is written
    results = folder / "layers" if arguments.layers else folder
    print(run_bench(folder, size, arguments.workers, results, arguments.part))
    print(f"\nwritten: {results}")


def measure(arguments: argparse.Namespace) -> None:
    """Print all measures of video files: a row per measure, a column per file."""
    from freeloc.metrics.measures import MEASURES, OF_MOTION
    from freeloc.pictures import drift_chart, write

    measured = [_measured(path) for path in arguments.videos]
    found, textured = [each.values for each in measured], [each.textured for each in measured]
    if arguments.drift_chart:
        names = [printable(str(path)) for path in arguments.videos]
        small = {name: [each.small] for name, each in zip(names, measured, strict=True)}
        write(drift_chart(small), arguments.drift_chart)
    names = [printable(str(path), None) for path in arguments.videos]
    if arguments.json:
        files = map(str, arguments.videos)
        print(json.dumps([_as_json(*row) for row in zip(files, found, textured, strict=True)]))
        return
    width = max(12, *(len(name) + 2 for name in names))
    print(f"{'':20}" + "".join(f"{name:>{width}}" for name in names))
    for name in MEASURES:
        print(f"{name:20}" + "".join(f"{_shown(row[name]):>{width}}" for row in found))
    for name, (pairs, of_all) in zip(names, textured, strict=True):
        if pairs < of_all:
            print(
                f"{name}: {' and '.join(OF_MOTION)} are measured in {pairs} of {of_all} pairs of frames; the others "
                "have no texture, and no motion can be seen in them"
            )


def _measured(path: Path) -> "Measured":
    """What is measured of one file."""
    from freeloc.metrics.streaming import measure
    from freeloc.metrics.video import read_frames

    where = printable(str(path))
    try:
        return measure(_with_progress(read_frames(path), where))
    except FreelocError as error:
        raise error if where in str(error) else FreelocError(f"{where}: {error}") from error


def _with_progress(frames: Iterable[T], title: str) -> Iterable[T]:
    """Count frames on a terminal, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return frames
    return tqdm(frames, title, unit=" frames", leave=False, disable=None)  # type: ignore[no-any-return]


def _shown(value: float) -> str:
    return "no texture" if math.isnan(value) else f"{value:.4f}"


def _as_json(name: str, row: dict[str, float], textured: tuple[int, int]) -> dict[str, Any]:
    """The measures of one file; null where no frames have texture, since JSON has no NaN."""
    values = {measure: None if math.isnan(value) else value for measure, value in row.items()}
    return {"file": name, **values, "pairs of frames": textured[1], "pairs with texture": textured[0]}


def add(commands: Commands) -> None:
    """Add these commands."""
    command = commands.add_parser("demo", help="sample a tiny model at 4x its trained length, with and without freeloc")
    command.add_argument("--output", type=Path, default=Path("freeloc-demo"), help="folder to write to")
    command.add_argument("--times", type=positive, default=4, help="length, in trained lengths")
    command.add_argument("--steps", type=positive, default=12, help="denoising steps")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--method", help="one method on every layer (freeloc methods), instead of the profile")
    command.set_defaults(run=demo)

    command = commands.add_parser("bench", help="compare methods on a tiny model; continues after an interruption")
    command.add_argument(
        "settings", nargs="*", metavar="SETTING", help="only these settings: methods, profiles, names in the tables"
    )
    command.add_argument("--model", default="tiny-wan", help="tiny-wan (synthetic hills) or tiny-film (a real film)")
    command.add_argument("--output", type=Path, help="folder to write to, by default freeloc-bench...")
    sizes = command.add_mutually_exclusive_group()
    sizes.add_argument("--full", action="store_true", help="all settings, more clips, up to 8x; runs for hours")
    sizes.add_argument(
        "--layers", action="store_true", help="another policy on one layer at a time, at 4x; runs for hours"
    )
    sizes.add_argument(
        "--losses", action="store_true", help="no videos: the denoising loss on true long clips, in minutes"
    )
    command.add_argument("--times", type=positive, nargs="+", default=[4], help="lengths of --losses, by default 4")
    command.add_argument("--clips", type=positive, default=16, help="clips of --losses, by default 16")
    command.add_argument("--part", nargs="+", default=[], metavar="NAME", help="only these parts of --full")
    command.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="NAME",
        help="more settings: methods (freeloc methods), or profiles of the model",
    )
    command.add_argument(
        "--workers", type=positive, default=1, help="number of processes; two or more have one thread each"
    )
    command.set_defaults(run=bench)

    command = commands.add_parser(
        "measure", help="measure sharpness, motion, flicker, freezing, looping and drift of videos"
    )
    command.add_argument(
        "videos", nargs="+", type=Path, metavar="VIDEO", help="an MP4, MOV, MKV, WebM, AVI or MPEG file, or a GIF"
    )
    command.add_argument("--json", action="store_true", help="one JSON object per file, in a list")
    command.add_argument("--drift-chart", type=Path, metavar="PNG", help="draw the drift of colours over time")
    command.set_defaults(run=measure)
