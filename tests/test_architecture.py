"""The house: who may import whom, who reads the environment, and that HTTP and index need no TensorFlow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for room in ("app", "model", "weights") for path in (ROOT / room).rglob("*.py"))
HEAVY = {"tensorflow", "keras", "torch", "model.encoder", "model.heads", "model.tensorflow_engine"}
REACHES_TENSORFLOW = {"app.loading", "app.quiet"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Modules that a file imports, `from a import b` as both `a` and `a.b`; type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    name, found = module_name(path), set(imports(path))
    rooms = {module.split(".")[0] for module in found}
    if name.startswith("model"):
        assert not rooms & {"app", "weights", "fastapi", "faiss"}
    if name.startswith("weights"):
        assert not rooms & {"app", "torch", "pickle", "tensorflow"}
        assert all(
            one.startswith("model.config") for one in found if one.split(".")[0] == "model" and one != "model"
        )
    if name.startswith("app.index"):
        own = {one for one in found if one.split(".")[0] in ("app", "model")}
        assert all(one.startswith(("app.index", "model.embedding", "model.scoring")) for one in own), own
        assert not rooms & {"fastapi", "pydantic", "starlette"}
    if name.startswith("app") and name not in REACHES_TENSORFLOW:
        # Anything heavy is imported inside a function, by the composition root and the command line only.
        assert not set(imports(path, top_level=True)) & HEAVY
        if name not in ("app.main", "app.cli"):
            assert not found & HEAVY
    assert "torch" not in rooms
    # The protocol's SDK is an extra: whoever does without it has all else.
    assert name == "app.mcp" or not rooms & {"mcp", "mcp_types"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_settings_reads_the_environment(path: Path) -> None:
    reads = {"environ", "getenv"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in reads:
            # quiet.py sets a default for TensorFlow and reads nothing.
            assert module_name(path) in ("app.settings", "app.quiet"), f"{path}:{node.lineno}"


def test_there_are_no_import_circles() -> None:
    graph = {module_name(path): set(imports(path, top_level=True)) for path in FILES}
    graph = {name: found & graph.keys() - {name} for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for one in graph[name]:
                visit(one, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_http_and_index_tests_pass_without_tensorflow() -> None:
    """A real run of some of them in a process where TensorFlow, Keras and torch cannot be imported."""
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'torch', 'transformers']));"
    )
    run = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-x', *sys.argv[1:]]))"
    files = ["tests/test_http_search.py", "tests/test_http_model.py", "tests/test_index_collection.py"]
    found = subprocess.run(
        [sys.executable, "-c", blocked + run, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-2000:]
