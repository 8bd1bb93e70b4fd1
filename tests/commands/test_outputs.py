"""Files that cannot be written are refused before the work, and nothing is touched."""

import os
from pathlib import Path

import pytest

from pipecat_duplex.commands.outputs import check_outputs, file_name
from pipecat_duplex.session import DuplexError


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path):
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("kept")
    (tmp_path / "link").symlink_to(new)
    check_outputs((there, None, new, tmp_path / "link2"))
    check_outputs((tmp_path / "link",))
    assert there.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/out", "there is no folder"),
        ("file/out", "there is no folder"),
        (".", "is a folder"),
        ("x" * 300, "cannot be written"),
        ("loop", "cannot be written"),
    ],
)
def test_places_that_do_not_work(tmp_path: Path, name: str, message: str):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DuplexError, match=message) as error:
        check_outputs((tmp_path / name,))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_places_that_are_not_ones_own(tmp_path: Path):
    (tmp_path / "theirs").touch(mode=0o444)
    with pytest.raises(DuplexError, match="cannot be written"):
        check_outputs((tmp_path / "theirs",))


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs Linux")
def test_a_file_system_that_takes_no_files():
    with pytest.raises(DuplexError, match="cannot be written"):
        check_outputs((Path("/proc/out"),))


def test_the_input_is_never_written_over(tmp_path: Path):
    user = tmp_path / "user.wav"
    user.touch()
    os.link(user, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(user)
    for name in ("user.wav", "hard", "soft", "../" + tmp_path.name + "/user.wav"):
        with pytest.raises(DuplexError, match="is the recording itself"):
            check_outputs((tmp_path / name,), inputs=(user,))


def test_two_outputs_are_two_files(tmp_path: Path):
    with pytest.raises(DuplexError, match="two things"):
        check_outputs((tmp_path / "a", tmp_path / "." / "a"))
    check_outputs((Path("/dev/null"), Path("/dev/null")))


def test_a_pipe_is_not_opened(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_outputs((pipe,))  # opening it would wait for a reader


def test_a_name_that_is_no_text_is_shown():
    assert file_name(Path(os.fsdecode(b"ges\xe4gt"))) == r"ges\xe4gt"
