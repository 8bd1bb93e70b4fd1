"""What is built for a package index: a wheel, a source distribution, and the page shown there."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("pipecat_duplex", "docs", "examples", "tests", "benchmarks", "training")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("build", "twine", "hatchling", "hatch_fancy_pypi_readme", "git"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout: git tells what is ours"),
]


def run(*command: str | Path, **kwargs) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both distributions, and return their folder."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def tracked(part: str) -> set[str]:
    return set(run("git", "-C", ROOT, "ls-files", part).split())


def test_twine_has_no_complaint(built: Path):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert names == tracked("pipecat_duplex")
    assert metadata


def test_the_source_distribution_holds_docs_tests_and_examples(built: Path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for part in PARTS:
        assert tracked(part) <= names, part
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= names


def test_the_page_of_a_package_index_has_no_broken_links(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        page = email.message_from_bytes(archive.read(name))
    assert page["Description-Content-Type"].startswith("text/markdown")
    description = page.get_payload()
    assert "# pipecat-duplex" in description and "docs/events.md" in description
    assert re.findall(r"\]\((?!https://)[^)]*\)", description) == []


def test_the_wheel_talks_away_from_the_checkout(wheel: Path, tmp_path: Path):
    place = tmp_path / "site"
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--target", place, wheel),
    )
    command = f"import pipecat_duplex.cli as cli; assert {str(place)!r} in cli.__file__; cli.main()"
    audio = ROOT / "examples" / "audio" / "question.wav"
    run(
        *(sys.executable, "-c", command, "converse", audio, "--out", "answer.wav"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
    )
    assert (tmp_path / "answer.wav").stat().st_size > 100_000
