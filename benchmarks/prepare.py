"""Make this checkout importable without network and without building it: a folder for ``PYTHONPATH``.

The folder holds links to the packages, metadata with the entry points that pyproject.toml names, and those of the
wheels whose distributions the machine lacks.
"""

import argparse
import ast
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).parent.parent


def link_packages(checkout: Path, site: Path) -> None:
    """Link the top-level packages that pyproject.toml names, and write metadata beside them.

    Args:
        checkout: folder with pyproject.toml.
        site: an existing folder.
    """
    content = tomllib.loads((checkout / "pyproject.toml").read_text())
    for package, folder in content["tool"]["setuptools"]["package-dir"].items():
        if "." not in package:
            (site / package).unlink(missing_ok=True)
            (site / package).symlink_to((checkout / folder).resolve())
    version = _version(checkout, content)
    info = site / f"freeloc-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: freeloc\nVersion: {version}\n")
    lines = []
    for group, points in content["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _version(checkout: Path, content: dict[str, Any]) -> str:
    """The version that pyproject.toml states, or that the package's ``__version__`` does."""
    if "version" in content["project"]:
        return str(content["project"]["version"])
    for node in ast.parse((checkout / "freeloc" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit(f"expected a version in {checkout}/pyproject.toml or freeloc/__init__.py, found none")


def is_missing(wheel: Path) -> bool:
    """Whether this Python has no distribution of the wheel's name, in any version.

    The machine's own versions are preferred: they fit each other, and its other packages.
    """
    try:
        metadata.version(wheel.name.split("-")[0])
    except metadata.PackageNotFoundError:
        return True
    return False


def install_wheels(wheels: Sequence[Path], site: Path) -> None:
    """Install wheels into a folder, without network and without looking at what they require."""
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *map(str, wheels)]
    subprocess.run(command, check=True)


def main() -> None:
    """Prepare the folder and say what went into it."""
    parser = argparse.ArgumentParser(description="Make a checkout importable, without network.")
    parser.add_argument("site", type=Path, help="folder to make, for PYTHONPATH")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="folder of wheels (default: .whl)")
    options = parser.parse_args()
    options.site.mkdir(parents=True, exist_ok=True)
    found = sorted(options.wheels.glob("*.whl"))
    wheels = [wheel for wheel in found if is_missing(wheel)]
    print(f"{len(found)} wheels in {options.wheels}, {len(wheels)} to install", flush=True)
    if wheels:
        install_wheels(wheels, options.site)
    link_packages(ROOT, options.site)
    print(f"in {options.site}: freeloc {' '.join(wheel.name.split('-')[0] for wheel in wheels)}", flush=True)


if __name__ == "__main__":
    main()
