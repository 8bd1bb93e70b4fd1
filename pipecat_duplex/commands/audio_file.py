"""Audio files: in, of any rate and layout; out, at the model's rate."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.session import SAMPLE_RATE_HZ, InvalidAudio

MAX_SECS = 3600.0
"""Longer files are refused: 24 kHz audio of both voices has to fit into memory."""

_BLOCK_SAMPLES = 1 << 18


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


def read_audio(path: Path) -> AudioFile:
    """Read a file that libsndfile knows (wav, flac, ogg, mp3 and others).

    Args:
        path: The file.

    Returns:
        Its audio, mixed down to mono and resampled to 24 kHz without delay.

    Raises:
        InvalidAudio: The file is missing, unreadable, empty, longer than an hour, or not audio.
    """
    if not path.exists():
        raise InvalidAudio(f"there is no file {path}: check the path")
    if path.is_dir():
        raise InvalidAudio(f"{path} is a folder: name an audio file in it")
    try:
        if path.stat().st_size == 0:
            raise InvalidAudio(f"{path} is empty: record it again")
        with soundfile.SoundFile(path) as file:
            return _read(path, file)
    except PermissionError as error:
        raise InvalidAudio(f"{path} may not be read: check its permissions") from error
    except (soundfile.LibsndfileError, OSError) as error:
        raise InvalidAudio(
            f"{path} cannot be read as audio: convert it to wav or flac, e.g. with sox or ffmpeg"
        ) from error


def write_wav(path: Path, channels: list[np.ndarray]) -> None:
    """Write 16-bit audio at 24 kHz.

    Args:
        path: The file.
        channels: One float32 array a channel, all of one length.

    Raises:
        InvalidAudio: The file cannot be written.
    """
    pcm16 = [np.frombuffer(float_to_pcm16(channel), dtype="<i2") for channel in channels]
    try:
        soundfile.write(
            path, np.stack(pcm16, axis=1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16"
        )
    except (soundfile.LibsndfileError, OSError) as error:
        raise InvalidAudio(f"{path} cannot be written: choose another place") from error


def _read(path: Path, file: soundfile.SoundFile) -> AudioFile:
    if file.frames == 0:
        raise InvalidAudio(f"{path} holds no audio: record it again")
    secs = file.frames / file.samplerate
    if secs > MAX_SECS:
        raise InvalidAudio(
            f"{path} is {secs / 60:.0f} minutes long: cut it to at most {MAX_SECS / 60:.0f}"
        )
    resampler = Resampler(file.samplerate, SAMPLE_RATE_HZ)
    blocks = [resampler.push(block) for block in _mono_blocks(path, file)]
    # The filter's tail, and its delay taken back: sample i of the file stays at its second.
    tail_samples = _scale(resampler.delay_samples, SAMPLE_RATE_HZ, file.samplerate) + 1
    blocks.append(resampler.push(np.zeros(tail_samples, np.float32)))
    pcm = np.concatenate(blocks)[resampler.delay_samples :]
    samples = max(1, _scale(file.frames, file.samplerate, SAMPLE_RATE_HZ))
    return AudioFile(pcm[:samples], file.samplerate, file.channels)


def _mono_blocks(path: Path, file: soundfile.SoundFile):
    for block in file.blocks(_BLOCK_SAMPLES, dtype="float32", always_2d=True):
        mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise InvalidAudio(f"{path} holds samples that are no numbers: record it again")
        yield mono


def _scale(samples: int, from_rate_hz: int, to_rate_hz: int) -> int:
    """Count the samples that last as long at another rate, rounded to the nearest."""
    return (2 * samples * to_rate_hz + from_rate_hz) // (2 * from_rate_hz)
