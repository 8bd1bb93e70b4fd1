"""Imports of the package, read from its source: what each module imports, and when."""

import ast
import functools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "pipecat_duplex"
ROOT = Path(__file__).parents[1] / PACKAGE


@dataclass(frozen=True)
class Import:
    """One import.

    Parameters:
        importer: Full name of the module that imports.
        target: Full name of the module that is imported.
        late: Whether it is imported by a call, or for types only, and not with its importer.
    """

    importer: str
    target: str
    late: bool


def modules() -> dict[str, Path]:
    """Return the package's modules by their full names."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports() -> list[Import]:
    """Return all imports of the package's modules, those of the standard library left out."""
    known = modules()
    return [
        Import(importer, target, late)
        for importer, path in known.items()
        for target, late in _targets(ast.parse(path.read_text()), known, late=False)
        if target.split(".")[0] not in sys.stdlib_module_names
    ]


def _targets(node: ast.AST, known: Mapping[str, Path], *, late: bool):
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, late
        return
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, "imports are absolute"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield (full if full in known else node.module), late
        return
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for field, value in ast.iter_fields(node):
        typing_only = isinstance(node, ast.If) and _is_typing(node.test) and field == "body"
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _targets(child, known, late=late or typing_only)


def _is_typing(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Return a circle of a graph, its first node at both ends; empty if there is none."""
    graph: dict[str, set[str]] = {}
    for source, target in edges:
        graph.setdefault(source, set()).add(target)
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for following in sorted(graph.get(node, ())):
            if found := visit(following, [*path, node]):
                return found
        finished.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])
