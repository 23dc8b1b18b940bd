"""The command ``freeloc``."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from freeloc.adapter import Adapter, Refusal
from freeloc.errors import FreelocError, ProfileError
from freeloc.example import Example
from freeloc.profile_files import load_profile
from freeloc.registry import registry

T = TypeVar("T")


def demo(arguments: argparse.Namespace) -> None:
    """Run the tiny model at several times its trained length, directly and with freeloc."""
    try:
        from freeloc.tiny.demo import run
    except ImportError as error:
        raise FreelocError(f'the demo needs more packages ({error}): pip install "freeloc[demo]"') from error
    run(arguments.output, arguments.times, arguments.seed, arguments.steps, arguments.method)


def bench(arguments: argparse.Namespace) -> None:
    """Compare methods on the tiny model."""
    try:
        from freeloc.tiny.bench import full, quick
        from freeloc.tiny.results import bench as run_bench
    except ImportError as error:
        raise FreelocError(f'the bench needs more packages ({error}): pip install "freeloc[bench]"') from error
    folder = arguments.output or Path("freeloc-bench-full" if arguments.full else "freeloc-bench")
    print(run_bench(folder, full() if arguments.full else quick(), arguments.workers))
    print(f"\nwritten: {folder}")


def measure(arguments: argparse.Namespace) -> None:
    """Print every measure of video files: a line per measure, a column per file."""
    from freeloc.metrics import MEASURES
    from freeloc.video import read_video

    found: list[dict[str, float]] = []
    for path in arguments.videos:
        video = read_video(path)
        try:
            found.append({name: function(video) for name, function in MEASURES.items()})
        except FreelocError as error:
            raise FreelocError(f"{path}: {error}") from error
    names = [str(path) for path in arguments.videos]
    if arguments.json:
        print(json.dumps([{"file": name, **row} for name, row in zip(names, found, strict=True)]))
        return
    width = max(12, *(len(name) + 2 for name in names))
    print(f"{'':20}" + "".join(f"{name:>{width}}" for name in names))
    for name in MEASURES:
        print(f"{name:20}" + "".join(f"{row[name]:{width}.4f}" for row in found))


def adapters(arguments: argparse.Namespace) -> int:
    """List the adapters, and what went wrong with plugins."""
    known = registry()
    things = known.adapters.things()
    for name, distribution, adapter in things:
        if isinstance(adapter, Adapter):
            print(f"{name:20} {distribution:20} {', '.join(adapter.classes)}")
    for name, distribution, refusal in things:
        if isinstance(refusal, Refusal):
            print(f"{name:20} {distribution:20} {', '.join(refusal.classes)}")
            print(f"{'':20} cannot be corrected: {refusal.reason}")
    return _problems()


def check_adapter(arguments: argparse.Namespace) -> int:
    """Run the conformance suite on an adapter's examples: a line per check, and what is wrong."""
    from freeloc.testing import examples, run_checks

    adapter = _thing(arguments.adapter, Adapter) if ":" in arguments.adapter else None
    found = [_example(arguments.example)] if arguments.example else examples(arguments.adapter)
    if not found:
        if adapter is None:
            registry().adapters.get(arguments.adapter)
        raise FreelocError(
            f"no installed example runs the adapter '{arguments.adapter}': give one with --example package.module:NAME"
        )
    failed = 0
    for example in found:
        for result in run_checks(example, adapter):
            words = result.problem or (f"not tried: {result.blocked} fails" if result.blocked else "")
            note = f" (expected: {result.expected})" if result.expected else ""
            print(f"{'ok    ' if result.passed else 'FAILED'} {example.label:20} {result.check} {words}{note}".rstrip())
            failed += not result.passed
    return 1 if failed else 0


def inspect(arguments: argparse.Namespace) -> None:
    """Say what can be seen of a model, and write a first adapter."""
    from freeloc.adapter_file import adapter_file
    from freeloc.inspection import inspect as inspect_model

    example = _example(arguments.example)
    frames, height, width, batch = arguments.tokens
    seen = inspect_model(example.model(), example.inputs(frames, height, width, batch))
    print(seen)
    if arguments.output:
        text, module = adapter_file(seen), arguments.output.stem
        try:
            arguments.output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FreelocError(f"cannot write {arguments.output}: {error.strerror}") from error
        command = f"freeloc check-adapter {module}:ADAPTER --example {arguments.example}"
        print(f"\nwritten: {arguments.output}. Check every line, then, in its folder: {command}")


def _example(name: str) -> Example:
    """An installed example by its name, or another by its place."""
    return _thing(name, Example) if ":" in name else registry().examples.get(name, way_out="; or package.module:NAME")


def _thing(path: str, kind: type[T]) -> T:
    """What "package.module:NAME" names."""
    module, _, name = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        thing = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FreelocError(f"expected package.module:NAME of an {kind.__name__}, found '{path}' ({error})") from error
    finally:
        sys.path.pop(0)
    if not isinstance(thing, kind):
        raise FreelocError(f"expected {path} to be an {kind.__name__}, found {type(thing).__name__}")
    return thing


def methods(arguments: argparse.Namespace) -> int:
    """List the methods."""
    for name, distribution, method in registry().methods.things():
        print(f"{name:20} {distribution:20} {method.source}")
    return _problems()


def profiles(arguments: argparse.Namespace) -> int:
    """List the profiles."""
    broken = []
    for name, distribution, path in registry().profiles.things():
        try:
            profile = load_profile(path)
        except ProfileError as error:
            broken.append(f"profile '{name}' of {distribution}: {error}")
            continue
        model = profile.model
        print(
            f"{name:20} {distribution:20} {profile.provenance.kind:10} {model.layers:3} layers, {model.heads:2} heads "
            f"of {model.head_dim:3}, {model.trained_latent_frames} latent frames: {model.name}"
        )
    return _problems(broken)


def show(arguments: argparse.Namespace) -> None:
    """Print one profile: what each layer gets, and where that comes from."""
    profile = load_profile(arguments.profile)
    print(f"{profile.model.name}: {profile.provenance.kind}\n{profile.provenance.source}\n{profile.provenance.notes}")
    for policy, layers in profile.layers.items():
        print(f"{policy:10} {len(layers):3} layers: {' '.join(str(layer) for layer in layers)}")


def validate(arguments: argparse.Namespace) -> None:
    """Check profile files; the first that is wrong is an error."""
    for path in arguments.profiles:
        load_profile(path)
        print(f"{path}: a valid profile")


def _problems(problems: Sequence[str] = ()) -> int:
    """Tell what is wrong with plugins; 1 if anything is."""
    known = registry()
    failures = [str(failure) for failure in known.failures]
    problems = [
        *failures,
        *known.adapters.conflicts(),
        *known.profiles.conflicts(),
        *known.methods.conflicts(),
        *problems,
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="freeloc", description="Long videos from short-clip video models, untrained.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help="a tiny real model at 4x its trained length, with and without freeloc")
    command.add_argument("--output", type=Path, default=Path("freeloc-demo"), help="folder to write to")
    command.add_argument("--times", type=_positive, default=4, help="length, in trained lengths")
    command.add_argument("--steps", type=_positive, default=12, help="denoising steps")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--method", help="one on every layer (freeloc methods), instead of the profile's choice")
    command.set_defaults(run=demo)

    command = commands.add_parser("bench", help="methods on the tiny model, measured; goes on where it was stopped")
    command.add_argument("--output", type=Path, help="folder to write to, freeloc-bench or freeloc-bench-full")
    command.add_argument("--full", action="store_true", help="all settings up to 4x, some at 8x: hours, not minutes")
    command.add_argument("--workers", type=_positive, default=1, help="processes; two or more have one thread each")
    command.set_defaults(run=bench)

    command = commands.add_parser("measure", help="sharpness, motion, flicker, freezing, looping, drift of video files")
    command.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="any file that ffmpeg reads, or a GIF")
    command.add_argument("--json", action="store_true", help="one JSON object per file, in a list")
    command.set_defaults(run=measure)

    command = commands.add_parser("adapters", help="list the models that can be patched")
    command.set_defaults(run=adapters)

    command = commands.add_parser("check-adapter", help="what must be true of an adapter, checked on a small model")
    command.add_argument("adapter", help="its name, or package.module:NAME of one that is not installed")
    command.add_argument("--example", help="package.module:NAME of a freeloc.testing.Example, if none is installed")
    command.set_defaults(run=check_adapter)

    command = commands.add_parser("inspect", help="what can be seen of a model that no adapter describes")
    command.add_argument("example", help="package.module:NAME of a freeloc.testing.Example, or an installed one's name")
    command.add_argument("--tokens", type=_positive, nargs=4, default=(8, 2, 3, 2), metavar=("F", "H", "W", "B"))
    command.add_argument("--output", type=Path, help="write a first adapter to this file")
    command.set_defaults(run=inspect)

    command = commands.add_parser("methods", help="list what a model can be patched with")
    command.set_defaults(run=methods)

    group = commands.add_parser("profiles", help="list, show or validate profiles")
    group.set_defaults(run=profiles)
    actions = group.add_subparsers(metavar="ACTION")
    actions.add_parser("list", help="all installed ones (the default)").set_defaults(run=profiles)
    command = actions.add_parser("show", help="what each layer gets, and where that comes from")
    command.add_argument("profile", help="name or path")
    command.set_defaults(run=show)
    command = actions.add_parser("validate", help="check files")
    command.add_argument("profiles", nargs="+", help="names or paths")
    command.set_defaults(run=validate)
    return top


def main(argv: list[str] | None = None) -> int:
    """Entry point. Errors of the user's are one message, not a traceback."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except FreelocError as error:
        print(f"freeloc: {error}", file=sys.stderr)
        return 2
