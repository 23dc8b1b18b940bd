"""Distributions with valid and broken plugins, as source code that pip can install."""

from conftest import make_profile

HOOKS = """
from dataclasses import replace
from pathlib import Path
import freeloc
from freeloc_adapters import wan

HERE = Path(__file__).parent

def adapter(name, cls):
    return replace(wan.DIFFUSERS, name=name, classes=("acme.models." + cls,))

@freeloc.hookimpl
def freeloc_adapters():
    return ADAPTERS

@freeloc.hookimpl
def freeloc_profiles():
    return PROFILES

@freeloc.hookimpl
def freeloc_methods():
    return METHODS
"""

MODELS = """
from diffusers import WanTransformer3DModel

class Acme(WanTransformer3DModel): ...
class Twin(WanTransformer3DModel): ...
class Contested(WanTransformer3DModel): ...
"""


def plugin(adapters="[]", profiles="[]", methods="[]"):
    """The code of a plugin."""
    return HOOKS.replace("ADAPTERS", adapters).replace("PROFILES", profiles).replace("METHODS", methods)


def profile_text(name):
    return make_profile(model=dict(make_profile().model) | {"name": name}).model_dump_json()


# Plugins of one distribution that fail to load, with the message of each.
FAILING = {
    "raises": ("raise RuntimeError('no licence key')", "RuntimeError: no licence key"),
    "needs_more": ("import a_missing_package", "ModuleNotFoundError: No module named 'a_missing_package'"),
    "raises_in_hook": (plugin("1 / 0"), "ZeroDivisionError: division by zero"),
    "gives_texts": (
        plugin("['wan']"),
        "FreelocError: freeloc_adapters must return Adapter or Refusal objects, found str",
    ),
    "gives_half": (
        plugin("[adapter('half', 'Acme'), None]", "[HERE / 'half.json']"),
        "FreelocError: freeloc_adapters must return Adapter or Refusal objects, found NoneType",
    ),
    "gives_one": (
        plugin("adapter('lonely', 'Acme')"),
        "FreelocError: freeloc_adapters must return a list of Adapter or Refusal objects, found Adapter",
    ),
    "gives_numbers": (plugin(profiles="[42]"), "FreelocError: freeloc_profiles must return Path objects, found int"),
    "gives_functions": (plugin(methods="[len]"), "FreelocError: freeloc_methods must return Method objects, found "),
    "asks_for_more": (
        "import freeloc\n@freeloc.hookimpl\ndef freeloc_adapters(device):\n    return []",
        "PluginValidationError: Plugin 'clumsy:asks_for_more' for hook 'freeloc_adapters'",
    ),
}

# Plugins that must be failures although they raise nothing.
SILENT = {
    "no_return": plugin("None"),
    "not_marked": plugin().replace("@freeloc.hookimpl\n", ""),
    "one_path_as_text": plugin(profiles="'lonely.json'"),
}

# A method in which every frame attends only to itself.
OWN_FRAME_ONLY = """[freeloc.plans.Method("acme-blindfold", lambda profile, layer, frames: freeloc.FramePlan(
    freeloc.FramePlan.identity(frames).positions, 2 * __import__("torch").eye(frames, dtype=__import__("torch").uint8)
))]"""

# Distribution: {path: text}. Each package is an entry point of its own name.
DISTRIBUTIONS = {
    "acme-video": {
        "acme/__init__.py": plugin("[adapter('acme', 'Acme')]", "[HERE / 'acme.json']", OWN_FRAME_ONLY),
        "acme/acme.json": profile_text("Acme"),
        "acme/models.py": MODELS,
    },
    "twin-one": {
        "one/__init__.py": plugin("[adapter('twin', 'Twin'), adapter('left', 'Contested')]", "[HERE / 'twin.json']"),
        "one/twin.json": profile_text("one"),
    },
    "twin-two": {
        "two/__init__.py": plugin("[adapter('twin', 'Twin'), adapter('right', 'Contested')]", "[HERE / 'twin.json']"),
        "two/twin.json": profile_text("two"),
    },
    "clumsy": {f"{name}/__init__.py": code for name, (code, _) in FAILING.items()}
    | {f"{name}/__init__.py": code for name, code in SILENT.items()},
    "lost": {"lost/__init__.py": plugin(profiles="[HERE / 'lost.json']")},
}

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "1.0"

[project.entry-points.freeloc]
POINTS

[tool.setuptools]
packages = PACKAGES
package-data = {"*" = ["*.json"]}
"""
