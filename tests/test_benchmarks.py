"""The benchmarks need a GPU and no installation. These tests show that they run, and from which files."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
pytest.importorskip("tomllib", reason="the benchmarks need Python 3.11")


def run(*command, **variables):
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, check=False
    )


@pytest.mark.slow
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
    assert {row["status"] for row in rows["check"] if row["backend"] == "sdpa"} == {"equal"}
    assert {row["status"] for row in rows["check"]} <= {"equal", "refused"}
    assert {row["plan"] for row in rows["attention"] if "ms" in row} >= {"dense", "vrpr", "tsa", "vrpr+tsa"}
    late = sum("latent frames" in line and "left out for want of time" in line for line in done.stdout.splitlines())
    assert [row["frames"] for row in rows["model"]] == [21, 21, 41, 41][: 4 - late]  # some on a busy machine
    assert (out / "results.md").read_text() in done.stdout


@pytest.mark.slow
def test_attention_on_the_cpu_is_timed_beside_another_checkout(tmp_path):
    variables = {"OUT": str(tmp_path), "OLD": str(ROOT), "PARTS": "attention overhead", "PYTHON": sys.executable}
    done = run("benchmarks/cpu.sh", "--quick", **variables)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "attention.json").read_text())["rows"]
    timed = {(row["side"], row["plan"]) for row in rows if row["frames"] == 42 and row["ms"] > 0}
    plans = {"vrpr", "tsa", "vrpr+tsa", "sliding-window", "wan2.1, mean of its layers"}
    assert timed == {("this", "dense"), *itertools.product(("this", "old"), plans)}
    with (tmp_path / "attention.csv").open() as file:
        assert [row["plan"] for row in csv.DictReader(file)] == [row["plan"] for row in rows]
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    around = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert [(row["frames"], "rest_ms" in row) for row in around] == [(21, False), (41, True)] * 2
    assert (tmp_path / "results.md").read_text() in done.stdout


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    """The program given as Python fails at once: no part can run, and each says so."""
    done = run("benchmarks/device.sh", "--device", "cpu", "--quick", PYTHON="false", OUT=str(tmp_path))
    assert done.returncode == 1
    parts = ["prepare", "check", "tests", "attention", "model"]
    assert re.findall(r"FAILED: (\w+) \(exit status 1\)", done.stdout) == parts


@pytest.mark.slow
def test_a_checkout_is_as_fast_as_itself(tmp_path):
    options = ["--quick", "--beyond", "--repeats", "5", "--models", "small", "--out", tmp_path]
    done = run(sys.executable, "benchmarks/cpu_forward.py", ROOT, ROOT, *options)
    assert done.returncode == 0, done.stderr
    ratios = [float(ratio) for ratio in re.findall(r"new / old ([\d.]+)", done.stdout)]
    assert len(ratios) == 1
    assert 0.5 < ratios[0] < 2


def test_ratios_are_to_the_calls_of_the_base_before_and_after():
    from timing import compare

    clock = itertools.count(10)  # each call takes one millisecond longer than the one before it

    def call():
        return float(next(clock))

    found = compare(call, {"a": call, "b": call}, rounds=2)
    # base 10, a 11, base 12, b 13, base 14, then in reverse: b 15, base 16, a 17, base 18
    assert {name: timing.ms for name, timing in found.items()} == {"a": 14, "b": 14, "": 14}
    assert {name: (timing.ratio, timing.repeats) for name, timing in found.items()} == {
        "a": (1, 2),
        "b": (1, 2),
        "": (1, 5),
    }
    slow = compare(lambda: 2.0, {"a": lambda: 5.0, "b": lambda: 1.0}, rounds=3, apart=2)
    assert [(slow[name].ratio, slow[name].low, slow[name].high) for name in "ab"] == [(2.5,) * 3, (0.5,) * 3]
    assert slow[""].repeats == 4  # before the first round, and after each


def test_the_rounds_fit_into_the_time():
    from timing import rounds_within

    assert [rounds_within(5, seconds, each=2) for seconds in (1, 7, 100)] == [1, 3, 5]


def test_the_largest_memory_of_a_call_is_found():
    from memory import use_of

    def call():
        first = torch.ones(3 * 2**18)  # 3 MiB
        second = torch.ones(2**18) + 1  # 1 MiB and, while it is added, 1 MiB more
        del first
        return second, torch.ones(2 * 2**18)

    assert use_of(call, "cpu") == (pytest.approx(5, abs=0.01), 0)


def test_the_pairs_that_attention_computes_are_counted():
    from memory import use_of

    query, key = torch.randn(1, 2, 6, 16), torch.randn(1, 2, 5, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert use_of(lambda: [attend(query, key, key), attend(query, query, query)], "cpu").pairs == 2 * 6 * (5 + 6)


def test_the_pairs_of_self_attention_are_counted():
    from beside_lvsa import PairCount
    from models import small_wan

    subject = small_wan(quick=True)
    model = subject.model()
    with PairCount(model) as count, torch.no_grad():
        model(**subject.inputs(5))
    assert count.pairs == len(model.blocks) * (5 * subject.tokens_per_frame) ** 2


def test_without_self_attention_the_values_remain_and_cross_attention_runs():
    import torch.nn.functional as F
    from overhead import no_self_attention

    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 3, 4)
    with no_self_attention():
        own, cross = (
            F.scaled_dot_product_attention(query, query, 2 * query),
            F.scaled_dot_product_attention(query, key, key),
        )
    assert torch.equal(own, 2 * query)
    assert torch.equal(cross, F.scaled_dot_product_attention(query, key, key))
    assert not torch.equal(F.scaled_dot_product_attention(query, query, 2 * query), own)


@pytest.mark.slow
def test_what_a_cache_changes_is_measured():
    done = run(sys.executable, "benchmarks/cached.py", "--steps", "1", "--frames", "22")
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first.endswith("calls 16")
    assert len(rows) == 7
    for row in rows:  # the cache has not begun to answer
        assert row.endswith(": calls 16, without freeloc 0.000, with freeloc 0.000")


def test_tables_replace_those_of_a_page(tmp_path):
    from tables import put_into

    page = tmp_path / "page.md"
    page.write_text("above\n<!-- cpu -->\n| old |\n<!-- /cpu -->\nbelow\n")
    for text in ("| new |\n", "| newer |\n"):
        put_into(page, text)
        assert page.read_text() == f"above\n<!-- cpu -->\n{text}<!-- /cpu -->\nbelow\n"
    page.write_text("above\n<!-- cpu -->\nbelow\n")
    with pytest.raises(SystemExit, match="expected the lines"):
        put_into(page, "| lost |\n")
