"""The command as people run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from pipecat_duplex.cli import app
from pipecat_duplex.commands import audio_file
from pipecat_duplex.version import __version__

RUNNER = CliRunner()
ROOT = Path(__file__).parents[1]


@pytest.fixture
def user(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    soundfile.write(path, np.zeros(8_000, np.float32), 16_000)
    return path


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipecat_duplex.cli", *map(str, args)]


def run(*args: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, timeout=120)


def assert_one_line(result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_help_takes_neither_torch_nor_pipecat():
    code = (
        "import sys; from pipecat_duplex.cli import main; sys.argv = ['x', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pipecat', 'moshi', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stderr == ""
    assert "converse" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_version():
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.strip() == f"pipecat-duplex {__version__}"


def test_no_command_shows_help():
    assert "converse" in RUNNER.invoke(app, []).output


@pytest.mark.parametrize("name", ["converse", "talk", "doctor"])
def test_every_command_explains_itself(name: str):
    result = RUNNER.invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "--checkpoint" in result.stdout


def test_a_missing_file_is_one_line_without_a_banner(tmp_path: Path):
    result = run("converse", tmp_path / "nowhere.wav")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no file")
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_not_audio(tmp_path: Path):
    path = tmp_path / "in.wav"
    path.write_text("no audio")
    assert_one_line(RUNNER.invoke(app, ["converse", str(path)]), "cannot be read as audio")


def test_an_empty_file(tmp_path: Path):
    path = tmp_path / "in.wav"
    path.touch()
    assert_one_line(RUNNER.invoke(app, ["converse", str(path)]), "is empty")


def test_a_file_longer_than_an_hour(user: Path, monkeypatch):
    monkeypatch.setattr(audio_file, "MAX_SECS", 0.1)
    assert_one_line(RUNNER.invoke(app, ["converse", str(user)]), "minutes long")


@pytest.mark.parametrize("secs", ["nan", "inf"])
def test_a_tail_without_end(user: Path, secs: str):
    assert RUNNER.invoke(app, ["converse", str(user), f"--tail={secs}"]).exit_code == 2


@pytest.mark.parametrize("name", ["./nowhere", "no/such/name"])
def test_an_unknown_checkpoint(user: Path, name: str):
    if "./" not in name:
        pytest.importorskip("moshi")
    result = RUNNER.invoke(app, ["converse", str(user), "--checkpoint", name])
    assert_one_line(result, name)


def test_without_the_engine_it_says_what_to_install(user: Path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("pipecat_duplex.engine.torch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = RUNNER.invoke(app, ["converse", str(user), "--checkpoint", "some/name"])
    assert_one_line(result, "pipecat-duplex[moshi]")


def test_without_matplotlib_it_says_what_to_install(user: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = RUNNER.invoke(app, ["converse", str(user), "--plot", str(tmp_path / "p.png")])
    assert_one_line(result, "pipecat-duplex[plot]")


@pytest.mark.slow
@pytest.mark.engine
def test_greedy_gives_the_same_files_byte_for_byte(user: Path, tmp_path: Path, tiny_checkpoint):
    pytest.importorskip("moshi")
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    config = json.loads((checkpoint / "config.json").read_text())
    config["model_id"]["trained"] = False
    (checkpoint / "config.json").write_text(json.dumps(config))
    for name in ("a", "b"):
        result = run(
            "converse",
            user,
            "--greedy",
            "--tail=1",
            f"--checkpoint={checkpoint}",
            f"--out={tmp_path / name}.wav",
            f"--events={tmp_path / name}.jsonl",
            f"--plot={tmp_path / name}.png",
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert "written" in result.stdout
        assert "are random" in " ".join(result.stdout.split())

    for suffix in ("wav", "jsonl", "png"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
    assert soundfile.info(tmp_path / "a.wav").frames == 36_000


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_is_quiet(user: Path, tiny_checkpoint):
    pytest.importorskip("moshi")
    args = ("--realtime", "--tail=60", "--verbose", f"--checkpoint={tiny_checkpoint}")
    process = subprocess.Popen(
        command("converse", user, *args), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "session" in line and "started" in line:
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
