"""What tests and benchmarks share has a place of its own: nothing else imports the tests."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(path: Path) -> set[str]:
    """Return the packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize(
    "folder", ["benchmarks", "examples", "harness", "pipecat_duplex", "training"]
)
def test_only_tests_import_tests(folder: str):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert not [str(path) for path in files if "tests" in imported(path)]


def test_the_harness_needs_no_benchmark_and_no_training():
    for path in (ROOT / "harness").glob("*.py"):
        assert not imported(path) & {"benchmarks", "training"}, path
