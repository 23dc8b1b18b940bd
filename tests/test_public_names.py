"""The names of `freeloc`, those that moved, and what importing and a first patch load."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace

import pytest

import freeloc
from freeloc.registry import Registry


def test_about_a_dozen_names():
    names = set(freeloc.__all__) - {"__version__"}
    assert len(names) <= 15
    assert all(hasattr(freeloc, name) for name in names)


def test_the_version_is_that_of_the_package():
    assert freeloc.__version__ == metadata.version("freeloc")


@pytest.mark.parametrize(("home", "name"), [(home, name) for home, names in freeloc._MOVED.items() for name in names])
def test_a_name_that_moved_still_works_and_says_where_it_is(home, name):
    with pytest.warns(DeprecationWarning, match=f"write 'from {home} import {name}'.*freeloc 0.3"):
        assert getattr(freeloc, name) is getattr(importlib.import_module(home), name)


def test_a_name_that_never_was():
    with pytest.raises(AttributeError, match="module 'freeloc' has no attribute 'pach'"):
        freeloc.pach  # noqa: B018


FIRST_PATCH = """
import sys, freeloc
from freeloc.tiny.model import load_transformer
transformer = load_transformer()
with freeloc.patch(transformer):
    pass
print([name for name in sys.modules if name.startswith(("freeloc.testing", "freeloc_adapters.examples", "pytest"))])
"""


@pytest.mark.slow
def test_the_first_patch_imports_no_test_code():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST_PATCH], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@dataclass
class Point:
    """An entry point of a package that is not installed."""

    name: str
    plugin: object
    dist: object = None

    def load(self):
        return self.plugin


def registry_of(**hooks):
    for name, hook in hooks.items():
        hook.__name__ = name
    return Registry([Point("mine", SimpleNamespace(**{name: freeloc.hookimpl(hook) for name, hook in hooks.items()}))])


def test_a_misspelled_hook_is_an_error():
    registry = registry_of(freeloc_adapter=lambda: [], freeloc_methods=lambda: [freeloc.plans.Method("m", None)])
    (failure,) = registry.failures
    assert "its function freeloc_adapter is marked @freeloc.hookimpl, and no hook has that name" in failure.cause
    assert "did you mean freeloc_adapters" in failure.cause
    assert registry.methods.owners == {}


def test_examples_are_asked_for_when_somebody_needs_them():
    asked = []

    def examples():
        asked.append(1)
        raise RuntimeError("no model library")

    registry = registry_of(freeloc_examples=examples, freeloc_methods=lambda: [freeloc.plans.Method("m", None)])
    assert list(registry.methods.owners) == ["m"]
    assert asked == registry.failures == []
    assert registry.examples.owners == {}
    assert asked == [1]
    assert "no model library" in registry.failures[0].cause
