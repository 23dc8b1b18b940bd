"""The benchmarks need a GPU and no installation. These tests show that they run, and from which files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("tomllib", reason="the benchmarks need Python 3.11")


def run(*command, **variables):
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, check=False
    )


def test_a_prepared_folder_works_like_an_installation(tmp_path):
    done = run(sys.executable, "benchmarks/prepare.py", tmp_path, "--wheels", tmp_path / "none")
    assert done.returncode == 0, done.stderr
    code = """
import tomllib
from importlib import metadata
from pathlib import Path
import freeloc, freeloc_adapters, freeloc_profiles
print([str(Path(module.__file__).parent) for module in (freeloc, freeloc_adapters, freeloc_profiles)])
found = metadata.distribution("freeloc")
wanted = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]["freeloc"]
assert {point.name: point.value for point in found.entry_points} == wanted
print(found.version == freeloc.__version__, freeloc.load_profile("wan2.1").model.layers)
"""
    done = run(sys.executable, "-P", "-c", code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    folders = [str(tmp_path / name) for name in ("freeloc", "freeloc_adapters", "freeloc_profiles")]
    assert done.stdout.splitlines() == [str(folders), "True 30"]


def test_wheels_are_the_versions_that_are_tested():
    pin = re.compile(r"^([\w-]+)==([^;\s]+)", re.MULTILINE)
    normal = {}
    for name in ("benchmarks/wheels.txt", "constraints.txt"):
        found = pin.findall((ROOT / name).read_text())
        normal[name] = {package.replace("-", "_").lower(): version for package, version in found}
    wheels, tested = normal.values()
    both = set(wheels) & set(tested)
    assert {"diffusers", "einops", "pluggy", "pydantic", "pytest", "safetensors"} <= both
    assert {package: wheels[package] for package in both} == {package: tested[package] for package in both}


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path):
    out = tmp_path / "out"
    done = run("benchmarks/device.sh", "--device", "cpu", "--quick", PYTHON=sys.executable, OUT=str(out))
    assert done.returncode == 0, done.stdout[-4000:]
    rows = {name: json.loads((out / f"{name}.json").read_text())["rows"] for name in ("check", "attention", "model")}
    assert {row["status"] for row in rows["check"]} == {"equal"}
    assert {row["plan"] for row in rows["attention"] if "ms" in row} >= {"dense", "vrpr", "tsa", "vrpr+tsa"}
    assert [row["frames"] for row in rows["model"]] == [21, 21, 81, 81]
    assert (out / "results.md").read_text() in done.stdout


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    """The program given as Python fails at once: no part can run, and each says so."""
    done = run("benchmarks/device.sh", "--device", "cpu", "--quick", PYTHON="false", OUT=str(tmp_path))
    assert done.returncode == 1
    parts = ["prepare", "check", "tests", "attention", "model"]
    assert re.findall(r"FAILED: (\w+) \(exit status 1\)", done.stdout) == parts


@pytest.mark.slow
def test_a_checkout_is_as_fast_as_itself():
    done = run(sys.executable, "benchmarks/cpu_forward.py", ROOT, ROOT, "--repeats", "7")
    assert done.returncode == 0, done.stderr
    ratios = [float(ratio) for ratio in re.findall(r"new / old ([\d.]+)", done.stdout)]
    assert len(ratios) == 2
    assert all(0.5 < ratio < 2 for ratio in ratios)
