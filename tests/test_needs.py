"""What is optional and missing makes a skip with a reason; what is a fault stays one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.needs import missing, needs_of_file, reason_to_skip

ROOT = Path(__file__).parents[1]


def error_of(code: str, folder: Path) -> BaseException:
    """Run code as if it stood in a file of that folder."""
    try:
        exec(compile(textwrap.dedent(code), folder / "x.py", "exec"), {})
    except Exception as error:
        return error
    raise AssertionError("no error")


def test_missing_is_neither_a_module_nor_a_command():
    assert missing(["json", "sh", "no_such_module", "no-such-command", "json"]) == [
        "no_such_module",
        "no-such-command",
    ]


@pytest.mark.parametrize("folder", ["tests", "training", "benchmarks", "examples"])
def test_an_import_of_what_is_not_installed_is_a_reason(folder: str):
    error = error_of("import no_such_module.part", ROOT / folder)
    assert reason_to_skip(error) == "needs no_such_module"


def test_a_command_that_is_not_installed_is_a_reason():
    error = error_of("import subprocess; subprocess.run(['no-such-command'])", ROOT / "training")
    assert reason_to_skip(error) == "needs no-such-command"


def test_a_library_that_is_not_installed_is_a_reason():
    error = error_of("import ctypes; ctypes.CDLL('libnowhere.so.1')", ROOT / "training")
    assert reason_to_skip(error) == "needs libnowhere.so.1"


@pytest.mark.parametrize(
    ("code", "folder"),
    [
        ("import no_such_module", "pipecat_duplex"),
        ("import subprocess; subprocess.run(['no-such-command'])", "pipecat_duplex"),
        ("open('no-such-file')", "tests"),
        ("import json.no_such_part", "tests"),
        ("raise ImportError('cannot import name')", "tests"),
        ("assert False", "tests"),
    ],
)
def test_a_fault_is_no_reason(code: str, folder: str):
    assert reason_to_skip(error_of(code, ROOT / folder)) is None


def test_an_error_around_a_failed_import_is_seen_through():
    code = """
    try: import no_such_module
    except ImportError as e: raise Exception("install it") from e
    """
    assert reason_to_skip(error_of(code, ROOT / "tests")) == "needs no_such_module"


def test_a_file_that_cannot_be_imported_needs_what_the_package_imports():
    error = error_of("import no_such_module", ROOT / "pipecat_duplex")
    assert reason_to_skip(error, collecting=True) == "needs no_such_module"


def test_the_engines_files_need_torch():
    assert needs_of_file(ROOT / "tests" / "engine" / "test_x.py") == ["torch", "moshi"]
    assert not needs_of_file(ROOT / "tests" / "test_x.py")


@pytest.mark.slow
def test_pytest_skips_what_it_cannot_run(tmp_path: Path):
    """The hooks in conftest.py, in a run of their own."""
    (tmp_path / "test_module.py").write_text("import no_such_module\ndef test(): pass\n")
    (tmp_path / "test_each.py").write_text(
        textwrap.dedent("""
        import subprocess
        import pytest

        @pytest.fixture
        def broken():
            import no_such_module

        def test_fixture(broken): pass
        def test_command(): subprocess.run(["no-such-command"])
        @pytest.mark.needs("no-such-command", "json")
        def test_named(): raise AssertionError
        def test_good(): pass
        def test_bad(): raise AssertionError
        """)
    )
    command = [sys.executable, "-m", "pytest", "-rs", "-q", "-p", "no:cacheprovider"]
    command += ["--noconftest", "-p", "tests.conftest", "--rootdir", str(tmp_path)]
    # Options of the outer run, such as a second -q, would change what is printed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    ran = subprocess.run(
        [*command, "-c", "/dev/null", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    # Nothing else: a skip before other plugins are ready would be an error in the teardown.
    assert "1 failed, 1 passed, 4 skipped" in ran.stdout, ran.stdout + ran.stderr
    assert " error" not in ran.stdout.splitlines()[-1]
    assert "needs no-such-command" in ran.stdout and "needs no_such_module" in ran.stdout
