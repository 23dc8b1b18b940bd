"""The mutations apply to the code as it is, and the check says which were noticed."""

import subprocess
from pathlib import Path

import pytest
from mutation import Mutation, read
from mutation_check import MUTATIONS, SURVIVED, Copy, check

ROOT = Path(__file__).parents[2]
AREAS = ("plans", "attention", "interception", "profile", "adapter", "patching.py", "report.py")


def test_there_are_at_least_sixty_in_all_areas():
    assert len(MUTATIONS) >= 60
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS)
    for area in AREAS:
        assert sum(mutation.path.startswith(f"freeloc/{area}") for mutation in MUTATIONS) >= 3, area


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_each_breaks_one_line_that_can_be_compiled_and_names_tests_that_exist(mutation):
    compile(mutation.applied_to(read(ROOT, mutation)), mutation.path, "exec")
    for test in mutation.paths_of_tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8")


def test_text_that_is_not_there_once_is_an_error():
    mutation = Mutation("freeloc/x.py", "one more", "a = 1", "a = 2", "x.py")
    for text, count in (("b = 1", 0), ("a = 1\na = 1", 2)):
        with pytest.raises(ValueError, match=rf"expected once in freeloc/x.py: 'a = 1', found it {count} times"):
            mutation.applied_to(text)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a package of one function, and two tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # which these tests need none of
    root = tmp_path / "repository"
    (root / "freeloc").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "freeloc" / "__init__.py").write_text("def double(x):\n    return 2 * x  # twice\n")
    test = "import freeloc\n\n\ndef test_double():\n    assert freeloc.double({0}) == {1}\n"
    (root / "tests" / "test_zero.py").write_text(test.format(0, 0))
    (root / "tests" / "test_one.py").write_text(test.format(1, 2))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def mutation(new, tests, what="another factor"):
    return Mutation("freeloc/__init__.py", what, "return 2 * x", new, tests)


def test_what_is_noticed_and_what_is_not(repository, tmp_path, capsys):
    before = (repository / "freeloc" / "__init__.py").read_text()
    copy, results = Copy(repository, tmp_path / "work", timeout=60), tmp_path / "results" / "found.json"
    tried = [mutation("return 3 * x", "test_zero.py test_one.py"), mutation("return 4 * x", "test_zero.py", "a fourth")]
    wanted = {"another factor": "tests/test_one.py::test_double", "a fourth": SURVIVED}
    assert check(copy, tried, results) == wanted
    assert "another factor: caught by tests/test_one.py::test_double\n  2 freeloc" in capsys.readouterr().out
    copy.timeout = 0
    assert check(copy, tried[:1], results) == {"another factor": wanted["another factor"]}  # it does not run again
    copy.timeout = 60
    assert check(copy, tried, results, whole=True)["a fourth"] == "tests/test_one.py::test_double"
    assert (repository / "freeloc" / "__init__.py").read_text() == before
    assert (copy.root / "freeloc" / "__init__.py").read_text() == before


def test_what_says_nothing_is_an_error(repository, tmp_path):
    copy, results = Copy(repository, tmp_path / "work", timeout=60), tmp_path / "found.json"
    with pytest.raises(ValueError, match=r"expected a failing test with 'another factor', found exit status"):
        check(copy, [mutation("return }", "test_one.py")], results)
    (copy.root / "freeloc" / "__init__.py").write_text("def double(x):\n    return 2 * x + 1\n")
    with pytest.raises(ValueError, match="expected the tests to pass without a mutation"):
        check(copy, [mutation("return 3 * x", "test_one.py")], results)


@pytest.mark.slow
def test_tests_that_do_not_end_are_noticed(repository, tmp_path):
    copy = Copy(repository, tmp_path / "work", timeout=3)
    assert "did not end in time" in copy.caught_by(mutation("return [x for _ in iter(int, 1)]", "test_one.py"))
