"""The plugins for vLLM-Omni and SGLang, installed by pip: their entry points, and their own tests, which have doubles.

tests/runtimes/test_vllm_omni.py and test_sglang.py run them in the real engines.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PACKAGES = {
    "vllm-omni-freeloc": ("vllm_omni.general_plugins", "vllm_omni_freeloc"),
    "sglang-freeloc": ("sglang.multimodal_gen.plugins", "sglang_freeloc"),
}
POINT = """
import sys
from importlib.metadata import entry_points
(point,) = entry_points(group=sys.argv[1])
print(point.name, point.load().__module__)
"""


@pytest.fixture(scope="module", params=PACKAGES)
def installed(request, tmp_path_factory):
    """(name, folder of the tests, what runs a program that can import the installed package, but not its source)."""
    folder = tmp_path_factory.mktemp(request.param)
    source = shutil.copytree(
        EXAMPLES / request.param, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    )
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(folder / "site"), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    def run(*command):
        environment = os.environ | {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=source / "tests"
        )

    return request.param, run


def test_the_engine_finds_it_by_its_entry_point(installed):
    name, run = installed
    group, module = PACKAGES[name]
    done = run("-c", POINT, group)
    assert done.stdout.split() == ["freeloc", module], done.stderr


@pytest.mark.slow
def test_its_own_tests_pass(installed):
    _, run = installed
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")
    assert done.returncode == 0, done.stdout + done.stderr
