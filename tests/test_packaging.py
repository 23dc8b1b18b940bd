"""The wheel and the source archive that users get: built, listed, installed and run."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ["freeloc", "adapters", "profiles", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Folder with the wheel and the source archive, built from a copy so that nothing is left in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def data_files():
    """Files beside the code that must not be forgotten, as paths in the wheel."""
    shipped = [*(ROOT / "profiles").glob("*.json"), *(ROOT / "profiles").glob("*.safetensors")]
    profiles = {f"freeloc_profiles/{path.name}" for path in shipped}
    return profiles | {"freeloc/py.typed", "freeloc/tiny/weights.safetensors", "freeloc/tiny/film/clips.safetensors"}


@pytest.mark.slow
def test_the_wheel_holds_our_three_packages_and_nothing_else(archives):
    (wheel,) = archives.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "freeloc",
        "freeloc_adapters",
        "freeloc_profiles",
    }
    assert len(tops) == 4
    assert data_files() <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_can_be_rebuilt_from_the_source_archive(archives):
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.split("/", 1)[1] for name in content.getnames() if "/" in name}
    moved = {name.replace("freeloc_profiles/", "profiles/") for name in data_files()}
    assert (
        moved | {"pyproject.toml", "README.md", "LICENSE", "adapters/wan.py", "freeloc/interception/hooks.py"} <= names
    )


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """Folder of the programs of a fresh environment that holds the wheel.

    Third-party packages come from this interpreter, because installing torch again takes minutes. The editable freeloc
    of this interpreter is not visible there, because its import hook is not active.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars=scheme))
    (wheel,) = archives.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-index", "--no-deps", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shared = tmp_path_factory.mktemp("shared")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "freeloc" not in path.name and path.suffix != ".pth":
            (shared / path.name).symlink_to(path)
    (site / "shared.pth").write_text(f"{shared}\n")
    return folder / "bin"


def run(program, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_installed_wheel_runs(installed):
    code = """
import freeloc, freeloc_adapters, freeloc_profiles
from importlib.metadata import entry_points
print(freeloc.__file__, freeloc_adapters.__file__, freeloc_profiles.__file__)
print(sorted(point.value for point in entry_points(group="freeloc")))
print([adapter.name for adapter in freeloc.discovery.adapters()])
print(freeloc.load_profile("wan2.1").model)
"""
    files, points, adapters, model = run(installed / "python", "-c", code).splitlines()
    assert all(Path(file).is_relative_to(installed.parent) for file in files.split())
    ours = ["attention.backends", "metrics.scorers", "plans.policies", "probing.depths", "tuning.depth"]
    assert points == str([*(f"freeloc.{name}" for name in ours), "freeloc_adapters", "freeloc_profiles"])
    assert "'wan'" in adapters
    assert model.startswith("name='Wan-AI/Wan2.1-T2V-1.3B' layers=30")


@pytest.mark.slow
def test_the_installed_command_runs(installed):
    assert "wan-vace             freeloc" in run(installed / "freeloc", "adapters")
    assert "wan2.1               freeloc              published" in run(installed / "freeloc", "profiles", "list")
