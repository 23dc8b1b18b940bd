"""freeloc adapters, check-adapter, inspect, methods, backends, scorers: models that can be patched, and methods."""

import argparse
import importlib
import runpy
import shlex
from pathlib import Path
from typing import TypeVar

from freeloc.adapter.example import Example
from freeloc.adapter.spec import Adapter, Refusal
from freeloc.attention.backends import Backend
from freeloc.cli.common import Commands, from_here, positive, problems, running
from freeloc.errors import AdapterError, FreelocError
from freeloc.files import replacing
from freeloc.metrics.judges import FAMILIES
from freeloc.registry import registry

T = TypeVar("T")
HINT = "; or package.module:NAME, or path/to/file.py:NAME"


def adapters(arguments: argparse.Namespace) -> int:
    """List the adapters, and the problems of plugins."""
    known = registry()
    things = known.adapters.things()
    for name, distribution, adapter in things:
        if isinstance(adapter, Adapter):
            print(f"{name:20} {distribution:20} {', '.join(adapter.classes)}")
    for name, distribution, refusal in things:
        if isinstance(refusal, Refusal):
            print(f"{name:20} {distribution:20} {', '.join(refusal.classes)}")
            print(f"{'':20} cannot be corrected: {refusal.reason}")
    return problems()


@from_here()
def check_adapter(arguments: argparse.Namespace) -> int:
    """Run the conformance suite on an adapter's examples, and print a line per check."""
    from freeloc.testing import examples, run_checks

    name = arguments.adapter
    adapter = _thing(name, Adapter) if ":" in name else registry().adapters.get(name, way_out=HINT)
    if isinstance(adapter, Refusal):
        raise AdapterError(f"'{name}' is refused, so there is nothing to check: {adapter.reason}")
    found = [_example(arguments.example)] if arguments.example else examples(name)
    if not found:
        raise FreelocError(
            f"no installed example runs the adapter '{name}': give one with --example package.module:NAME"
        )
    failed = 0
    for example in found:
        for result in run_checks(example, adapter):
            text = result.problem or (f"not run: {result.blocked} fails" if result.blocked else "")
            note = f" (expected: {result.expected})" if result.expected else ""
            print(f"{'ok    ' if result.passed else 'FAILED'} {example.label:20} {result.check} {text}{note}".rstrip())
            failed += not result.passed
    return 1 if failed else 0


@from_here()
def inspect(arguments: argparse.Namespace) -> None:
    """Print the inspection of a model, and write a draft of an adapter."""
    from freeloc.inspection.adapter_file import adapter_file
    from freeloc.inspection.inspector import inspect as inspect_model

    if arguments.output and arguments.output.suffix != ".py":
        raise FreelocError(f"expected --output to name a .py file, found {arguments.output}")
    example = _example(arguments.example)
    frames, height, width, batch = arguments.tokens
    inputs = example.inputs(frames, height, width, batch)
    seen = inspect_model(example.model(), inputs, arguments.video, example.run)
    print(seen)
    if arguments.output:
        text = adapter_file(seen)
        try:
            with replacing(arguments.output) as part:
                part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FreelocError(f"cannot write {arguments.output}: {error.strerror}") from error
        command = ["freeloc", "check-adapter", f"{arguments.output}:ADAPTER", "--example", arguments.example]
        print(f"\nwritten: {arguments.output}. Check every line, then: {shlex.join(command)}")


def _example(name: str) -> Example:
    """An installed example by its name, or another one by its import path."""
    return _thing(name, Example) if ":" in name else registry().examples.get(name, way_out=HINT)


def _thing(path: str, kind: type[T]) -> T:
    """The object at "package.module:NAME" or "path/to/file.py:NAME"."""
    place, _, name = path.rpartition(":")
    running(place)
    try:
        is_file = place.endswith(".py")
        thing = runpy.run_path(place)[name] if is_file else getattr(importlib.import_module(place), name)
    except FreelocError:
        raise
    except (ImportError, AttributeError, KeyError, OSError, ValueError) as error:
        raise FreelocError(
            f"expected package.module:NAME or path/to/file.py:NAME of an {kind.__name__}, found '{path}' ({error})"
        ) from error
    if not isinstance(thing, kind):
        raise FreelocError(f"expected {path} to be an {kind.__name__}, found {type(thing).__name__}")
    return thing


def methods(arguments: argparse.Namespace) -> int:
    """List the methods, and their settings."""
    for name, distribution, method in registry().methods.things():
        settings = f"; settings: {', '.join(method.settings.model_fields)}" if method.settings else ""
        print(f"{name:20} {distribution:20} {method.source}{settings}")
    return problems()


def backends(arguments: argparse.Namespace) -> int:
    """List the attention backends, in the order in which ``auto`` tries them."""
    things = registry().backends.things()
    for name, distribution, backend in sorted(things, key=lambda thing: -_order(thing[2])):
        use = "by name only" if backend.priority is None else f"auto, priority {backend.priority}"
        print(f"{name:20} {distribution:20} {use:20} {backend.source}")
    return problems()


def _order(backend: Backend) -> float:
    return float("-inf") if backend.priority is None else backend.priority


def scorers(arguments: argparse.Namespace) -> int:
    """List the scorers."""
    for name, distribution, scorer in registry().scorers.things():
        print(
            f"{name:20} {distribution:20} {'higher' if scorer.higher_is_better else 'lower'} is better: {scorer.source}"
        )
    for family, (_, argument, description) in FAMILIES.items():
        print(f"{f'{family}:{argument}':20} {'freeloc':20} higher is better: {description}")
    return problems()


def add(commands: Commands) -> None:
    """Add these commands."""
    command = commands.add_parser("adapters", help="list the models that can be patched")
    command.set_defaults(run=adapters)

    command = commands.add_parser("check-adapter", help="run the conformance suite on an adapter")
    command.add_argument("adapter", help="name of the adapter, or package.module:NAME, or path/to/file.py:NAME")
    command.add_argument("--example", help="name of an installed example, or package.module:NAME")
    command.set_defaults(run=check_adapter)

    command = commands.add_parser("inspect", help="find the attention calls of a model without an adapter")
    command.add_argument("example", help="package.module:NAME of a freeloc.testing.Example, or its name")
    command.add_argument("--tokens", type=positive, nargs=4, default=(8, 2, 3, 2), metavar=("F", "H", "W", "B"))
    command.add_argument("--video", help="argument that holds the noisy video, or an item of one, as in x.0")
    command.add_argument("--output", type=Path, help="write a draft of an adapter to this file")
    command.set_defaults(run=inspect)

    command = commands.add_parser("methods", help="list the methods that a model can be patched with")
    command.set_defaults(run=methods)

    command = commands.add_parser("backends", help="list the kernels that compute corrected attention")
    command.set_defaults(run=backends)

    command = commands.add_parser("scorers", help="list the scorers of depth video")
    command.set_defaults(run=scorers)
