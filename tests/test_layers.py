"""The structure: imports go from higher layers to lower ones, without cycles, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tgeokd

ROOT = Path(tgeokd.__file__).parent
# From the bottom up, one folder per layer; the files beside them are import paths for users.
LAYERS = (
    *(
        "utils",
        "core",
        "bilevel",
        "methods",
        "data",
        "models",
        "teachers",
        "training",
        "runs",
        "paper",
        "report",
        "cli",
    ),
    *("losses", "geometry", "__main__"),
)
FILES = sorted(ROOT.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "tgeokd"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tgeokd":
            module = node.module or ""
            for alias in node.names:
                is_module = (ROOT.parent / module.replace(".", "/") / f"{alias.name}.py").exists()
                found.add(f"{module}.{alias.name}" if is_module else module)
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 else 0  # the package itself imports only the helper for lazy names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = layer_of(module_name(path))
    upward = [module for module in imports_of(path) if layer_of(module) > own]
    assert not upward


def test_every_folder_is_a_layer():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(LAYERS)


def test_there_are_no_cycles():
    graph = {module_name(path): imports_of(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for imported in graph.get(module, ()):
                if imported != module:
                    visit(imported, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["distill", "--help"]], ids=" ".join)
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys\nfrom tgeokd.cli.main import main\n"
        f"sys.argv = ['tgeokd', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'sklearn', 'matplotlib', 'polars'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"
