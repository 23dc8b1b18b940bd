"""The rules of docs/architecture.md: imports point one way, files are small, one file registers hooks."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FREELOC = ROOT / "freeloc"
FILES = sorted(path for path in FREELOC.rglob("*.py"))

LEVELS = [
    {"errors", "markers"},
    {"files", "untrusted"},
    {"plans", "adapter"},
    {"attention", "metrics"},
    {"registry", "report"},
    {"discovery"},
    {"uncorrected"},
    {"interception", "profile"},
    {"patching"},
    {"layer"},
    {"pictures", "inspection"},
    {"testing"},
    {"probing"},
    {"tuning"},
    {"tiny"},
    {"cli"},
]
"""Folders of freeloc/ from the bottom up: each imports only folders below it."""


def room(module):
    """The folder of a module of freeloc, or "" for freeloc itself."""
    return module.split(".")[1] if "." in module else ""


def module_of(path):
    parts = ["freeloc", *path.relative_to(FREELOC).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path):
    """The modules of freeloc that a file imports, those for type checking and those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "freeloc")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "freeloc":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


IMPORTS = {module_of(path): set(imports(path)) for path in FILES}


def test_every_room_has_a_level():
    rooms = {room(name) for name in IMPORTS} - {"", "__main__"}
    assert rooms == set().union(*LEVELS)


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_point_one_way(name):
    if room(name) in ("", "__main__"):
        return
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    for imported in IMPORTS[name]:
        if room(imported) not in ("", room(name)):
            assert level[room(imported)] < level[room(name)], f"{name} imports {imported}"


def test_no_import_circle():
    """Not even among the files of one folder, whose __init__ only collects them."""
    graph = {name: {other for other in found if other != name} for name, found in IMPORTS.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph.get(name, ())):
                visit(other)
            path.pop()
            done.add(name)

    for name in sorted(graph):
        visit(name)


def test_files_are_small():
    assert {path: count for path in FILES if (count := len(path.read_text().splitlines())) > 300} == {}


def test_few_files_are_beside_the_folders():
    assert len(list(FREELOC.glob("*.py"))) <= 12


def test_one_file_registers_hooks_that_change_what_a_model_computes():
    changing = re.compile(r"\._forward_(pre_)?hooks\[|register_(full_)?(backward|forward)_")
    found = {module_of(path) for path in FILES if changing.search(path.read_text(encoding="utf-8"))}
    watching = {"freeloc.interception.watch", "freeloc.probing.calls", "freeloc.testing.behaviour"}
    refusing = {"freeloc.interception.checkpoints"}
    assert found - watching - refusing == {"freeloc.interception.registration"}


def code_of(path):
    """A file without its docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.unparse(tree)


def test_freeloc_names_no_architecture():
    """Outside the tiny model, which is a Wan, and docstrings, which need examples."""
    names = re.compile(r"\b(hunyuan|cogvideo|wan2|open-?sora|mochi|kandinsky|allegro|latte|easyanimate)", re.IGNORECASE)
    for path in FILES:
        if room(module_of(path)) != "tiny":
            assert not names.search(code_of(path)), path


def test_a_steady_forward_enters_few_files(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import trace_forward

    files = trace_forward.steady_forward()
    assert len(set(files)) <= 14, sorted(set(files))  # seven of them only read and check the call
    assert trace_forward.switches(files) <= 115
