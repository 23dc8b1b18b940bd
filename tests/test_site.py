"""The documentation site, built like the public one. Requires the extra `docs`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("zensical", reason='the site is built with: pip install "freeloc[docs]"')

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources of the site, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "freeloc").symlink_to(ROOT / "freeloc")
    return folder


def build(folder):
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(source):
    done = build(source)
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "site"


def test_every_page_is_built(site):
    for page in (site.parent / "docs").rglob("*.md"):
        place = page.relative_to(site.parent / "docs").with_suffix("")
        if place.parts[0] != "examples":
            folder = place.parent if place.name == "index" else place
            assert (site / folder / "index.html").exists(), place
    assert not (site / "examples").exists()


def test_the_reference_has_docstrings_with_their_examples_as_code(site):
    page = (site / "reference" / "freeloc" / "index.html").read_text(encoding="utf-8")
    assert 'id="freeloc.patch"' in page
    assert "Correct the attention of a video diffusion transformer" in page
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
    assert "<blockquote>" not in page


def test_no_page_loads_anything_from_another_server(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=[^>]*>|<link\b[^>]*stylesheet[^>]*>", text):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (page, tag)


def test_a_broken_link_stops_the_build(source, site):
    page = source / "docs" / "gotchas.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(f"{text}\n[nothing](nothing.md)\n", encoding="utf-8")
    try:
        done = build(source)
    finally:
        page.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    assert "nothing.md" in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
