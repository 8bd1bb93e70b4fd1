"""Audio files of every layout end up on one time line."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_duplex.commands import audio_file
from pipecat_duplex.commands.audio_file import read_audio, write_wav
from pipecat_duplex.session import InvalidAudio

RATES_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)


def burst(rate_hz: int, at_secs: float, secs: float = 2.0) -> np.ndarray:
    """A short swell around a moment: its middle can be found again at any rate."""
    time = np.arange(round(secs * rate_hz)) / rate_hz - at_secs
    return (0.5 * np.exp(-((time / 0.002) ** 2))).astype(np.float32)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_moment_stays_where_it_is(tmp_path: Path, rate_hz: int, suffix: str):
    path = tmp_path / f"in.{suffix}"
    soundfile.write(path, burst(rate_hz, 1.0), rate_hz)

    audio = read_audio(path)

    assert len(audio.pcm) == 48_000
    assert audio.pcm.dtype == np.float32
    assert abs(int(audio.pcm.argmax()) - 24_000) <= 1
    assert audio.source_rate_hz == rate_hz


def test_the_end_is_there(tmp_path: Path):
    path = tmp_path / "in.wav"
    soundfile.write(path, burst(8_000, 1.995), 8_000)

    assert abs(int(read_audio(path).pcm.argmax()) - round(1.995 * 24_000)) <= 1


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_channels_are_mixed_whatever_the_sample_format(tmp_path: Path, subtype: str):
    path = tmp_path / "in.wav"
    left = burst(24_000, 1.0)
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 24_000, subtype=subtype)

    audio = read_audio(path)

    assert audio.source_channels == 2
    assert audio.pcm.max() == pytest.approx(0.25, abs=0.02)


def test_a_file_longer_than_a_block_has_no_seams(tmp_path: Path, monkeypatch):
    path = tmp_path / "in.wav"
    soundfile.write(path, burst(16_000, 1.0), 16_000)
    whole = read_audio(path).pcm
    monkeypatch.setattr(audio_file, "_BLOCK_SAMPLES", 997)

    np.testing.assert_allclose(read_audio(path).pcm, whole, atol=1e-6)


def test_what_is_written_is_read_again(tmp_path: Path):
    path = tmp_path / "out.wav"
    user, agent = burst(24_000, 0.5), burst(24_000, 1.5)

    write_wav(path, [user, agent])

    pcm, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == 24_000
    np.testing.assert_allclose(pcm, np.stack([user, agent], axis=1), atol=1 / 32768)


def write_missing(path: Path):
    pass


def write_folder(path: Path):
    path.mkdir()


def write_nothing(path: Path):
    path.touch()


def write_text(path: Path):
    path.write_text("this is no audio\n" * 100)


def write_header_only(path: Path):
    soundfile.write(path, np.zeros(0, np.float32), 16_000)


def write_half_a_header(path: Path):
    soundfile.write(path, np.zeros(100, np.float32), 16_000)
    path.write_bytes(path.read_bytes()[:20])


def write_telegraph(path: Path):
    soundfile.write(path, np.zeros(100, np.float32), 4_000)


def write_no_numbers(path: Path):
    soundfile.write(path, np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")


def write_long(path: Path):
    soundfile.write(path, np.zeros(16_000 * 3, np.float32), 16_000)


BAD_FILES = {
    "there is no file": write_missing,
    "is a folder": write_folder,
    "is empty": write_nothing,
    "cannot be read as audio": write_text,
    "holds no audio": write_header_only,
    "cannot be read": write_half_a_header,
    "rate": write_telegraph,
    "no numbers": write_no_numbers,
    "minutes long": write_long,
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_files_say_what_is_wrong(tmp_path: Path, monkeypatch, message: str):
    monkeypatch.setattr(audio_file, "MAX_SECS", 2.0)
    path = tmp_path / "in.wav"
    BAD_FILES[message](path)

    with pytest.raises(InvalidAudio, match=message):
        read_audio(path)
