"""What freeloc asks this package for."""

from pathlib import Path

import freeloc
from freeloc_toy.adapter import TOY
from freeloc_toy.examples import EXAMPLE


@freeloc.hookimpl
def freeloc_adapters():
    """The adapter."""
    return [TOY]


@freeloc.hookimpl
def freeloc_examples():
    """What it is checked on."""
    return [EXAMPLE]


@freeloc.hookimpl
def freeloc_profiles():
    """The profile toy-2-layers."""
    return [Path(__file__).parent / "toy-2-layers.json"]
