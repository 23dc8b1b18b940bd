"""The documentation: its code runs, its quoted errors are raised, and its lists are complete."""

import importlib
import re
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml
from marks import slow_unless

import freeloc

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(path for path in DOCS.rglob("*.md") if "examples" not in path.parts)])
HOME = "https://github.com/freeloc/freeloc/(?:blob|tree)/main/"
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|raises) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


def named(page):
    return str(page.relative_to(ROOT))


def code_blocks(page, language="python"):
    """The code on a page that runs without an error."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block["text"] for block in found if block["language"] == language and not block["mark"]]


def quoted(text):
    """A pattern for a message on a page: ... matches any text, and line breaks do not matter."""
    parts = re.split(r"\.\.\.", " ".join(text.split()))
    return re.compile(".*".join(re.escape(part) for part in parts) + r"\Z")


LONG = (
    "probe-your-model.md", "depths.md", "use-in-modular-diffusers.md", "tune-your-model.md", "gallery.md",
    "long-video-options.md", "write-a-backend.md", "use-with-cache-dit.md",
)  # fmt: skip
"""Pages whose code takes seconds."""


@pytest.mark.parametrize("page", [slow_unless(page.name not in LONG, page, name=named(page)) for page in PAGES])
def test_code_blocks_run_and_raise_what_is_quoted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__file__": str(tmp_path / "page.py")}
    blocks = [block for block in BLOCK.finditer(page.read_text(encoding="utf-8")) if block["mark"] != "not run"]
    for block, following in zip_longest(blocks, blocks[1:]):
        code = compile(block["text"], page.name, "exec") if block["language"] == "python" else None
        if code and block["mark"] == "raises":
            assert following is not None, page
            assert following["language"] == "text"
            with pytest.raises(freeloc.FreelocError) as caught:
                exec(code, names)
            found = " ".join(f"{type(caught.value).__name__}: {caught.value}".split())
            assert quoted(following["text"]).match(found), found
        elif code:
            exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_fences_are_ones_that_the_site_renders(page):
    """The site shows ```python no-run as text: write <!-- not run --> on the line before ```python."""
    assert not re.findall(r"^```\w+ .+$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_have_targets(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
        assert not (page.is_relative_to(DOCS) and not (page.parent / target).resolve().is_relative_to(DOCS)), target
    for target in re.findall(rf"\]\({HOME}([^)#]+)", text):
        assert (ROOT / target).exists(), target


def configuration():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(entries):
    for entry in entries:
        (place,) = entry.values()
        yield from [place] if isinstance(place, str) else pages_of(place)


def test_the_site_has_every_page():
    assert sorted(pages_of(configuration()["nav"])) == sorted(
        page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS)
    )


def test_every_error_has_a_page_that_raises_it():
    families = {kind.__name__ for kind in freeloc.FreelocError.__subclasses__() if kind.__module__ == "freeloc.errors"}
    assert len(families) == 6
    for name in families:
        page = DOCS / "errors" / f"{name.removesuffix('Error').lower()}.md"
        assert f"```text\n{name}: " in page.read_text(encoding="utf-8")
        assert f"({page.name})" in (DOCS / "errors" / "index.md").read_text(encoding="utf-8")


def documented(page):
    return re.findall(r"^::: ([\w.]+)$", (DOCS / "reference" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)


def resolved(path):
    """What is at a dotted path of modules and attributes."""
    for end in range(path.count(".") + 1, 0, -1):
        names = path.split(".")
        try:
            found = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"{path} is nothing")


def test_the_reference_covers_the_public_packages_and_names_nothing_else():
    everything = [path for page in (DOCS / "reference").glob("*.md") for path in documented(page.name)]
    for path in everything:
        assert resolved(path).__doc__, path
    packages = ["plans", "adapter", "attention", "probing", "metrics", "pictures", "inspection", "testing"]
    assert {"freeloc", *(f"freeloc.{package}" for package in packages)} <= set(everything)


def test_the_glossary_names_what_exists_and_is_in_order():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]*) \|$", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    terms = [term.lower() for term, _ in rows[1:]]
    assert terms == sorted(terms)
    assert len(terms) > 30
    for _, places in rows[1:]:
        for place in re.findall(r"`(freeloc[\w.]+)`", places):
            assert resolved(place) is not None
        for place in re.findall(r"`([\w/]+\.py)`", places):
            assert (ROOT / place).exists()


def test_the_command_line_page_matches_the_parser(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    command_line = importlib.import_module("command_line")
    assert command_line.PAGE.read_text(encoding="utf-8") == command_line.page(), "run python docs/command_line.py"


def test_the_table_of_supported_models_has_a_line_for_each_adapter():
    table = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|([^|]+)\|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    listed = {name: set(re.findall("`([^`]+)`", classes)) for name, classes, _ in table}
    installed = {
        adapter.name: {path.rpartition(".")[2] for path in adapter.classes} for adapter in freeloc.discovery.adapters()
    }
    assert listed == installed
    for _, _, made_of in table:
        assert re.match(r" (diffusers \d+\.\d+\.\d+|a double of the original[^:]*): ", made_of)


def test_a_quoted_message_may_leave_text_out_but_not_differ():
    assert quoted("E: expected 1, ... found 2").match("E: expected 1, and also found 2")
    assert not quoted("E: expected 1, found 2").match("E: expected 1, found 3")
    assert not quoted("E: expected 1").match("E: expected 1, found 3")


def test_files_about_the_project_agree_on_versions():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == freeloc.__version__
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["rev"] for hook in hooks if "ruff" in hook["repo"]] == [f"v{pinned['ruff']}"]
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    tested = tests["jobs"]["newest"]["strategy"]["matrix"]["python"]
    assert f"| Python | 3.10 and newer | {tested[0]} to {tested[-1]} |" in (DOCS / "versions.md").read_text()
    older = {each["versions"]: each["python"] for each in tests["jobs"]["older"]["strategy"]["matrix"]["include"]}
    assert f'requires-python = ">={older["oldest"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_changelog_names_where_old_names_went():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("### Deprecated")[2]
    rows = re.findall(r"^\| (`freeloc.*?) \| `([\w.]+)` \|$", changelog.partition("## 0.1.0")[0], flags=re.MULTILINE)
    listed = {(home, name) for names, home in rows for name in re.findall(r"`(?:freeloc\.)?(\w+)`", names)}
    assert listed == {(home, name) for home, names in freeloc._MOVED.items() for name in names}
