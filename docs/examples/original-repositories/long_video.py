"""Runs a script of another project unchanged, with its transformers patched by freeloc.

    python long_video.py PROFILE WHERE SCRIPT [arguments of the script]

PROFILE is the name of a profile, a file, or a repository. WHERE says where the transformers are: the method of the
object that holds them (``wan:WanT2V.generate``), or the function that loads and returns them
(``opensora.utils.sampling:prepare_models``). They are patched while the method runs, or until the script ends.
"""

import functools
import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import freeloc

Function = Callable[..., Any]


def patched_in_method(method: Function, profile: str) -> Function:
    """The method, which runs with the transformers of its object patched."""

    @functools.wraps(method)
    def run(self: object, *args: Any, **kwargs: Any) -> Any:
        with freeloc.patch(self, profile=profile) as patch:
            result = method(self, *args, **kwargs)
        print(patch.report(), file=sys.stderr)
        return result

    return run


def patched_from_function(function: Function, profile: str, patches: list[freeloc.Patch]) -> Function:
    """The function, which returns patched transformers."""

    @functools.wraps(function)
    def load(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        patches.append(freeloc.patch(model, profile=profile))
        return result

    return load


def main(profile: str, where: str, script: str, *arguments: str) -> None:
    """Replace the method or function, run the script, and print what was corrected."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    module, _, names = where.partition(":")
    *path, name = names.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    patches: list[freeloc.Patch] = []
    found = getattr(owner, name)
    setattr(owner, name, patched_in_method(found, profile) if path else patched_from_function(found, profile, patches))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        for patch in patches:
            print(patch.report(), file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
