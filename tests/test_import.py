"""What an import brings with it, and the table of packages in docs/architecture.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import PACKAGE, Import, circle, imports, modules

HEAVY = ("torch", "moshi", "matplotlib", "scipy", "soundfile", "typer", "rich", "onnxruntime")
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
EVERYWHERE = {"numpy", "loguru"}
RUNTIMES = {"engine", "engine.onnx", "engine.torch"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_package_brings_nothing_heavy():
    """A bot whose model runs elsewhere needs no torch; Pipecat's own imports do not count."""
    extra = modules_after("import pipecat_duplex") - modules_after(
        "import pipecat.services.llm_service, pipecat.audio.vad.vad_analyzer"
    )
    assert [name for name in HEAVY if name in extra] == []


def table() -> dict[str, tuple[set[str], set[str]]]:
    """Return what each package may import, by the page: with itself, and later."""
    row = re.compile(r"^\| `([\w.]+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
    name = re.compile(r"`([\w.]+)`")
    return {
        package: (set(name.findall(first)), set(name.findall(later)))
        for package, first, later in row.findall(PAGE.read_text())
    }


def row_of(module: str, rows: dict) -> str:
    """Return the row that a module belongs to; a module of others is its own."""
    if not (module + ".").startswith(PACKAGE + "."):
        return module.split(".")[0]
    name = module.removeprefix(PACKAGE).lstrip(".") or "__init__"
    while name not in rows:
        assert "." in name, f"{module} has no row in {PAGE.name}"
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("package", table())
def test_the_table_of_packages_is_true(package: str):
    rows = table()
    first, later = set(), set()
    for found in imports():
        if row_of(found.importer, rows) == package:
            (later if found.late else first).add(row_of(found.target, rows))
    first -= {package, *EVERYWHERE}
    later -= {package, *EVERYWHERE, *first}
    assert (first, later) == rows[package], f"{package} imports {first}, and later {later}"


def test_every_module_has_a_row():
    rows = table()
    assert {row_of(module, rows) for module in modules()} == set(rows)


def test_no_circle_of_modules():
    """Not even by imports inside of functions."""
    known = modules()
    edges = [(found.importer, found.target) for found in imports() if found.target in known]
    assert not circle(edges)


def test_no_circle_of_packages():
    """The engine looks for its runtimes when it loads, and they import the engine: only these."""
    rows, known = table(), modules()

    def edge(found: Import) -> tuple[str, str]:
        return row_of(found.importer, rows), row_of(found.target, rows)

    between = [found for found in imports() if found.target in known]
    edges = {edge(found): found for found in between if len(set(edge(found))) == 2}
    assert not circle(edge(found) for found in between if not found.late and edge(found) in edges)
    assert not circle(pair for pair in edges if not set(pair) <= RUNTIMES)


def test_a_circle_is_found():
    assert circle([("a", "b"), ("b", "c"), ("c", "b")]) == ["b", "c", "b"]
    assert not circle([("a", "b"), ("a", "c"), ("b", "c")])
