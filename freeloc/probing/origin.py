"""Where measurements come from: the command line, versions of libraries, and settings of a run."""

import contextlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from freeloc.errors import ProbeError


def as_json_values(settings: Mapping[str, Any]) -> Any:
    """Settings as they are when they are read from a file."""
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise ProbeError(f"expected run_settings of numbers, texts, lists and objects of these: {error}") from error


def command_line() -> str:
    """The command line of this process, without the folder of the script."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    started = ["python", "-m", module.name] if module is not None else [Path(sys.argv[0]).name]
    return shlex.join([*started, *sys.argv[1:]])


def versions_used() -> dict[str, str]:
    """Versions of the libraries that affect the measurements."""
    found = {"python": platform.python_version()}
    for name in ("freeloc", "torch", "diffusers", "transformers", "accelerate"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
