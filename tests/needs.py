"""What a test needs beyond the package's own dependencies: modules of extras, and commands.

A test never fails because something optional is missing; it is skipped with a reason. An import at
the top of a test file, or in ``training`` and ``benchmarks``, is enough for that. What the package
imports while a test runs is named: ``@pytest.mark.needs("sphn", "flite")``. The marks ``engine``
and ``browser`` name what they need by themselves.
"""

import importlib.util
import shutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.chromium import find_chromium

ROOT = Path(__file__).parents[1]

MARKS = {"engine": ("torch", "moshi"), "browser": ("chromium",)}
"""Marks that stand for needs."""

FOLDERS = {ROOT / "tests" / "engine": ("torch", "moshi")}
"""Folders whose files all need something before they can be imported."""


def missing(names: Iterable[str]) -> list[str]:
    """Return which of these are neither importable modules nor commands."""
    return [name for name in dict.fromkeys(names) if not _is_there(name)]


def needs_of(item: pytest.Item) -> list[str]:
    """Return what a test needs by its marks."""
    named = [name for mark in item.iter_markers("needs") for name in mark.args]
    implied = [names for mark, names in MARKS.items() if item.get_closest_marker(mark)]
    return named + [name for names in implied for name in names]


def needs_of_file(path: Path) -> list[str]:
    """Return what a test file needs by the folder it is in."""
    return [n for folder, names in FOLDERS.items() if folder in path.parents for n in names]


def reason_to_skip(error: BaseException | None, *, collecting: bool = False) -> str | None:
    """Tell why an error only means that something optional is missing; None if it does not.

    What fails inside the package is a fault, unless the test has named what it needs, or a whole
    file cannot be imported.
    """
    while error is not None:
        reason = _reason(error)
        if reason and (collecting or not _in_package(error)):
            return reason
        error = error.__cause__  # Pipecat has errors of its own around a failed import
    return None


def _reason(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.partition(".")[0]
        return None if _is_importable(name) else f"needs {name}"
    if isinstance(error, FileNotFoundError) and error.filename:
        name = str(error.filename)
        # Started by its name alone: a command, not a file of the test's own.
        is_command = Path(name).name == name and _in_subprocess(error)
        return f"needs {name}" if is_command and missing([name]) else None
    if isinstance(error, OSError) and "cannot open shared object file" in str(error):
        return f"needs {str(error).partition(':')[0]}"
    return None


def _is_there(name: str) -> bool:
    if name == "chromium":
        return find_chromium() is not None
    return shutil.which(name) is not None or _is_importable(name)


def _is_importable(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _in_package(error: BaseException) -> bool:
    """Tell whether the package's own code failed, not the code of a test or a tool beside it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
            return path.is_relative_to(ROOT / "pipecat_duplex")
    return False


def _in_subprocess(error: BaseException) -> bool:
    return any(
        Path(frame.filename).name == "subprocess.py"
        for frame in traceback.extract_tb(error.__traceback__)
    )
