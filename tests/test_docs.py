"""What the documentation shows is run."""

import re
from pathlib import Path

import pytest

import freeloc

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def code_blocks(page, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__file__": str(tmp_path / "page.py")}
    for block in code_blocks(page):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_table_of_supported_models_has_a_line_for_each_adapter():
    table = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|([^|]+)\|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    listed = {name: set(re.findall("`([^`]+)`", classes)) for name, classes, _ in table}
    installed = {
        adapter.name: {path.rpartition(".")[2] for path in adapter.classes} for adapter in freeloc.discovery.adapters()
    }
    assert listed == installed
    for _, _, made_of in table:
        assert re.match(r" (diffusers \d+\.\d+\.\d+|a double of the original): ", made_of)
