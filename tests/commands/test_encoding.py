"""Whatever standard output can write, a command prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINT = """
import sys
from pipecat_duplex.commands.encoding import print_in_any_encoding
print_in_any_encoding()
for stream in (sys.stdout, sys.stderr):
    print("✓ moshi • ─ … “μ” 音 ge\\udcf6ffnet café", file=stream)
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "utf-8", "utf-16"])
def test_every_character_is_written_somehow(encoding: str):
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    for written in (done.stdout, done.stderr):
        text = written.decode(encoding)
        assert "moshi" in text and r"ge\xf6ffnet" in text
        if encoding == "ascii":
            assert text.strip() == r"""+ moshi * - ... "u" ? ge\xf6ffnet caf?"""


@pytest.mark.parametrize("arguments", [["--help"], ["converse", "--help"], ["doctor", "--help"]])
def test_help_in_ascii(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-m", "pipecat_duplex.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and b"Usage" in done.stdout, done.stderr
