"""Audio files: in, of any rate and layout; out, at the model's rate."""

import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from loguru import logger

from pipecat_duplex.commands.audio_header import count_mp3_samples, mend, mend_mp3
from pipecat_duplex.commands.outputs import file_name
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.session import SAMPLE_RATE_HZ, InvalidAudio

MAX_SECS = 3600.0
"""Longer files are refused: 24 kHz audio of both voices has to fit into memory."""

MAX_BYTES = 1 << 30
"""Audio from a pipe, or with a header to mend, is held in memory: no more than this."""

_BLOCK_SAMPLES = 1 << 12
_CONVERT = "convert it to wav or flac, e.g. with sox or ffmpeg"


@dataclass(frozen=True)
class AudioFile:
    """A recording as the model hears it.

    Parameters:
        pcm: Float32 mono, shape ``(n,)``, 24 kHz, on the file's own time line to the sample.
        source_rate_hz: Sample rate of the file.
        source_channels: Channels of the file; their mean was taken.
    """

    pcm: np.ndarray
    source_rate_hz: int
    source_channels: int

    @property
    def secs(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / SAMPLE_RATE_HZ


class _Stream(soundfile.SoundFile):
    """A file that is read straight through, as far as its audio goes.

    soundfile trusts the header's length and seeks after each read; some codecs cannot seek.
    """

    def seekable(self) -> bool:
        return False


def read_audio(path: Path) -> AudioFile:
    """Read a file that libsndfile knows (wav, flac, ogg, mp3 and others).

    The file is read to its end, whatever length its header tells. A pipe may stand for a file.

    Args:
        path: The file; ``-`` is the standard input.

    Returns:
        Its audio, mixed down to mono and resampled to 24 kHz without delay.

    Raises:
        InvalidAudio: The file is missing, unreadable, empty, longer than an hour, or not audio.
    """
    name = file_name(path)
    try:
        with ExitStack() as stack:
            return _read(name, _open(path, name, stack))
    except InvalidAudio:
        raise
    except FileNotFoundError as error:
        raise InvalidAudio(f"there is no file {name}: check the path") from error
    except IsADirectoryError as error:
        raise InvalidAudio(f"{name} is a folder: name an audio file in it") from error
    except PermissionError as error:
        raise InvalidAudio(f"{name} may not be read: check its permissions") from error
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise InvalidAudio(f"{name} cannot be read as audio: {_CONVERT}") from error


def write_wav(path: Path, channels: list[np.ndarray]) -> None:
    """Write 16-bit audio at 24 kHz.

    Args:
        path: The file, or a pipe.
        channels: One float32 array a channel, all of one length.

    Raises:
        InvalidAudio: The file cannot be written.
    """
    pcm16 = [np.frombuffer(float_to_pcm16(channel), dtype="<i2") for channel in channels]
    # In memory first: a pipe cannot seek back to the header.
    wav = io.BytesIO()
    soundfile.write(wav, np.stack(pcm16, axis=1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    try:
        path.write_bytes(wav.getbuffer())
    except OSError as error:
        raise InvalidAudio(
            f"{file_name(path)} cannot be written: {error.strerror}; choose another place"
        ) from error


def _open(path: Path, name: str, stack: ExitStack) -> _Stream:
    """Open a file as audio, mended if its header is unfinished."""
    if str(path) == "-" or not stat.S_ISREG(path.stat().st_mode):
        content = _read_all(path, name)
        opened = _open_content(content, stack)
    else:
        content = None
        if path.stat().st_size == 0:
            raise InvalidAudio(f"{name} is empty: record it again")
        opened = _open_path(path, stack)
    if opened is not None and opened.frames > 0 and opened.format != "MP3":
        return opened
    mended = _mend(_read_all(path, name) if content is None else content, opened)
    if mended is None or (again := _open_content(mended, stack)) is None:
        if opened is None:
            raise InvalidAudio(f"{name} cannot be read as audio: {_CONVERT}")
        return opened
    if again.format != "MP3":
        logger.warning(f"The header of {name} is unfinished: the file is read to its end")
    return again


def _mend(content: bytes, opened: _Stream | None) -> bytes | None:
    if opened is None or opened.format != "MP3":
        return mend(content)
    samples = count_mp3_samples(content)
    if samples is None or samples <= opened.frames:
        return None
    return mend_mp3(content)


def _open_path(path: Path, stack: ExitStack) -> _Stream | None:
    # By its bytes: a name need not be text.
    source = str(path) if sys.platform == "win32" else os.fsencode(path)
    try:
        return stack.enter_context(_Stream(source))
    except (soundfile.LibsndfileError, TypeError):  # TypeError: .raw needs a rate
        with path.open("rb"):  # a better word, if it may not be read at all
            return None


def _open_content(content: bytes, stack: ExitStack) -> _Stream | None:
    # libsndfile knows some formats by a file only, not by bytes in memory.
    file = stack.enter_context(tempfile.TemporaryFile())
    file.write(content)
    file.flush()
    file.seek(0)
    try:
        return stack.enter_context(_Stream(file.fileno(), closefd=False))
    except soundfile.LibsndfileError:
        return None


def _read_all(path: Path, name: str) -> bytes:
    if str(path) == "-":
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    if not content:
        raise InvalidAudio(f"{name} is empty: nothing came from it")
    if len(content) > MAX_BYTES:
        raise InvalidAudio(f"{name} has more than {MAX_BYTES >> 30} GiB: {_CONVERT}, and cut it")
    return content


def _read(name: str, file: _Stream) -> AudioFile:
    rate_hz = file.samplerate
    # The length that an MP3 tells may be a guess, and some tell none: then it is seen on the way.
    if MAX_SECS < file.frames / rate_hz < 1e6 and file.format != "MP3":
        raise _too_long(name, file.frames / rate_hz)
    resampler = Resampler(rate_hz, SAMPLE_RATE_HZ)
    blocks, samples = [], 0
    for block in _mono_blocks(name, file):
        samples += len(block)
        if samples > MAX_SECS * rate_hz:
            raise _too_long(name, samples / rate_hz)
        blocks.append(resampler.push(block))
    if not samples:
        raise InvalidAudio(f"{name} holds no audio: record it again")
    # The filter's tail, and its delay taken back: sample i of the file stays at its second.
    tail_samples = _scale(resampler.delay_samples, SAMPLE_RATE_HZ, rate_hz) + 1
    blocks.append(resampler.push(np.zeros(tail_samples, np.float32)))
    pcm = np.concatenate(blocks)[resampler.delay_samples :]
    wanted = max(1, _scale(samples, rate_hz, SAMPLE_RATE_HZ))
    return AudioFile(pcm[:wanted], rate_hz, file.channels)


def _mono_blocks(name: str, file: _Stream) -> Iterator[np.ndarray]:
    samples = 0
    while True:
        try:
            block = file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            if not samples:
                raise
            logger.warning(f"{name} is damaged after {samples / file.samplerate:.1f} s: cut there")
            return
        if not len(block):
            return
        samples += len(block)
        mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise InvalidAudio(f"{name} holds samples that are no numbers: record it again")
        yield mono


def _too_long(name: str, secs: float) -> InvalidAudio:
    return InvalidAudio(
        f"{name} is {secs / 60:.0f} minutes long or more: cut it to at most {MAX_SECS / 60:.0f}"
    )


def _scale(samples: int, from_rate_hz: int, to_rate_hz: int) -> int:
    """Count the samples that last as long at another rate, rounded to the nearest."""
    return (2 * samples * to_rate_hz + from_rate_hz) // (2 * from_rate_hz)
