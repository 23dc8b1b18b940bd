"""The third-party plugin of docs/examples, installed by pip and used through the registry."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "docs" / "examples" / "freeloc-toy"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a program that sees the installed plugin, and not its source."""
    source, site = tmp_path_factory.mktemp("source") / "freeloc-toy", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(site), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source / "freeloc_toy")

    def call(*command, folder=site):
        environment = os.environ | {"PYTHONPATH": str(site)}
        python = [sys.executable, *command]
        return subprocess.run(python, capture_output=True, text=True, env=environment, cwd=folder)

    call.tests = source / "tests"
    return call


def test_the_command_lists_its_adapter_and_profile(run):
    done = run("-m", "freeloc", "adapters")
    assert done.returncode == 0, done.stderr
    assert ["toy", "freeloc-toy", "freeloc_toy.model.ToyDiT"] in [line.split() for line in done.stdout.splitlines()]
    assert "ToyDiT with 2 layers" in run("-m", "freeloc", "profiles").stdout
    assert "vrpr+tsa     1 layers: 1" in run("-m", "freeloc", "profiles", "show", "toy-2-layers").stdout


def test_the_command_checks_its_adapter(run):
    done = run("-m", "freeloc", "check-adapter", "toy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok     toy") == len(done.stdout.splitlines()) == 16


def test_a_model_is_patched_in_one_line(run):
    code = """
import freeloc
from freeloc_toy.examples import EXAMPLE
model = EXAMPLE.model()
with freeloc.patch(model) as patch:  # adapter and profile are found from the model alone
    model(**EXAMPLE.inputs(16, 2, 3, 2))
print(patch.report())
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "2 attention calls corrected" in done.stdout
    assert "ToyDiT with 2 layers, default" in done.stdout


def test_its_own_five_lines_of_tests_pass(run):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_adapter.py", folder=run.tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed" in done.stdout
