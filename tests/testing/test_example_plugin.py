"""The third-party plugin of docs/examples, and the one that the page builds, installed by pip and used by name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import code_blocks

from freeloc.testing import CHECKS

DOCS = Path(__file__).parents[2] / "docs"
PLUGIN = DOCS / "examples" / "freeloc-toy"
PAGE = DOCS / "write-an-adapter.md"


def copy_of_the_plugin(folder):
    return shutil.copytree(PLUGIN, folder / "freeloc-toy", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a program that can import the installed plugin, but not its source."""
    return installed(copy_of_the_plugin(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("site"))


def installed(source, site):
    """Install the package of a folder, remove its source, and return what runs programs with it installed."""
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


CODE = """
import freeloc
from freeloc_toy.examples import EXAMPLE
model = EXAMPLE.model()
with freeloc.patch(model) as patch:  # adapter and profile are found from the model alone
    model(**EXAMPLE.inputs(16, 2, 3, 2))
print(patch.report())
"""


def test_the_command_lists_its_adapter_and_profile(run):
    done = run("-m", "freeloc", "adapters")
    assert done.returncode == 0, done.stderr
    assert ["toy", "freeloc-toy", "freeloc_toy.model.ToyDiT"] in [line.split() for line in done.stdout.splitlines()]
    assert "ToyDiT with 2 layers" in run("-m", "freeloc", "profiles").stdout
    assert "vrpr+tsa     1 layers: 1" in run("-m", "freeloc", "profiles", "show", "toy-2-layers").stdout


@pytest.mark.slow
def test_the_command_checks_its_adapter(run):
    done = run("-m", "freeloc", "check-adapter", "toy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok     toy") == len(done.stdout.splitlines()) == len(CHECKS)


def test_a_model_is_patched_in_one_line(run):
    done = run("-c", CODE)
    assert done.returncode == 0, done.stderr
    assert "2 attention calls corrected" in done.stdout
    assert "ToyDiT with 2 layers, default" in done.stdout


@pytest.mark.slow
def test_its_own_five_lines_of_tests_pass(run):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_adapter.py", folder=run.tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CHECKS)} passed" in done.stdout


@pytest.mark.slow
def test_the_package_built_by_following_the_page_meets_every_requirement(tmp_path, monkeypatch):
    source = copy_of_the_plugin(tmp_path)
    package, blocks, names = source / "freeloc_toy", code_blocks(PAGE), {}
    files = {found[1]: block for block in blocks if (found := re.match(r"# freeloc_toy/(\w+\.py)\n", block))}
    for path in (*files, "toy-2-layers.json"):
        (package / path).unlink()
    for path, block in files.items():
        (package / path).write_text(block)
    monkeypatch.chdir(package)
    exec(f"import freeloc\n{files['examples.py']}{files['adapter.py']}", names)
    exec(next(block for block in blocks if "profile.save(" in block), names)
    assert set(code_blocks(PAGE, "toml")[0].splitlines()) <= set((source / "pyproject.toml").read_text().splitlines())
    (tmp_path / "site").mkdir()
    run = installed(source, tmp_path / "site")
    done = run("-m", "freeloc", "check-adapter", "toy")
    assert done.stdout.count("ok     toy") == len(done.stdout.splitlines()) == len(CHECKS), done.stdout + done.stderr
    assert "2 attention calls corrected, 0 left as they are (profile: ToyDiT, default)" in run("-c", CODE).stdout
