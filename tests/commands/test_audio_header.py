"""Audio files whose headers do not tell their length, as pipes and dead recorders leave them.

Each file is made whole by libsndfile first. ffmpeg's own are read too, where it is installed.
"""

import io
import os
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_duplex.commands import audio_file
from pipecat_duplex.commands.audio_file import read_audio
from pipecat_duplex.session import InvalidAudio

RATE_HZ = 16_000
SECS = 3.0
QUESTION = Path(__file__).parents[2] / "examples" / "audio" / "question.wav"


def whole(kind: str, pcm: np.ndarray | None = None, **how) -> bytearray:
    """A file of that kind, three seconds by default."""
    if pcm is None:
        pcm = 0.3 * np.sin(np.arange(round(SECS * RATE_HZ)) / 20)
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE_HZ, format=kind, **how)
    return bytearray(file.getvalue())


def put(content: bytes, at: int, form: str, *values: int) -> bytes:
    fixed = bytearray(content)
    struct.pack_into(form, fixed, at, *values)
    return bytes(fixed)


def with_sizes(content: bytes, data_bytes: int, riff_bytes: int, order: str = "<") -> bytes:
    """A WAV whose two sizes say something else."""
    content = put(content, 4, order + "I", riff_bytes & 0xFFFFFFFF)
    return put(content, content.find(b"data") + 4, order + "I", data_bytes & 0xFFFFFFFF)


def with_ds64(size: int) -> bytes:
    content = whole("RF64")
    return put(content, content.find(b"ds64") + 8, "<QQQ", size, size, size)


def with_caf_size(size: int) -> bytes:
    content = whole("CAF")
    return put(content, content.find(b"data") + 4, ">q", size)


def in_pages(secs: float = SECS) -> bytes:
    """An Ogg with many pages: noise takes room."""
    noise = np.random.default_rng(0).normal(0, 0.2, round(secs * RATE_HZ))
    return bytes(whole("OGG", noise, subtype="VORBIS"))


UNFINISHED = {
    **{
        f"wav, data {data:#x}, riff {riff:#x}": with_sizes(whole("WAV"), data, riff)
        for data, riff in (
            *((0, riff) for riff in (0, 36, -1, len(whole("WAV")) - 8)),
            (1, 37),
            *((size, size + 36) for size in (0x7FFFFFFF, 0x80000000, 0x7FFFF000)),
            (-1, -1),
        )
    },
    "wav of 24 bits": with_sizes(whole("WAV", subtype="PCM_24"), 0, 0),
    "wav in floats": with_sizes(whole("WAV", subtype="FLOAT"), 0, 0),
    "wav in stereo": with_sizes(whole("WAV", np.full((48_000, 2), 0.1)), 0, 0),
    "wav, big-endian": with_sizes(whole("WAV", endian="BIG"), 0, 0, ">"),
    "rf64, 0": with_ds64(0),
    "rf64, unknown": with_ds64(2**64 - 1),
    "caf, 0": with_caf_size(0),
    "caf, unknown": with_caf_size(-1),
    "caf, too long": with_caf_size(10**6),
    "au, 0": put(whole("AU"), 8, ">I", 0),
    "au, unknown": put(whole("AU"), 8, ">I", 2**32 - 1),
    "aiff": put(whole("AIFF"), 4, ">I", 0),
    "w64": put(put(whole("W64"), 16, "<Q", 0), whole("W64").find(b"data") + 16, "<Q", 0),
    "flac": put(whole("FLAC"), 21, ">BI", whole("FLAC")[21] & 0xF0, 0),
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_header_that_does_not_tell_the_length(tmp_path: Path, kind: str):
    path = tmp_path / "in"
    path.write_bytes(UNFINISHED[kind])
    audio = read_audio(path)
    assert audio.secs == pytest.approx(SECS, abs=0.05)
    assert np.abs(audio.pcm[24_000:48_000]).max() > 0.05


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU", "CAF", "OGG", "MP3", "W64"])
def test_a_file_that_was_cut_off_is_heard_as_far_as_it_goes(tmp_path: Path, kind: str):
    path = tmp_path / "in"
    content = in_pages(30) if kind == "OGG" else whole(kind)
    path.write_bytes(content[: len(content) * 2 // 3])
    secs = 30 if kind == "OGG" else SECS
    assert 0.5 * secs < read_audio(path).secs < 0.8 * secs


@pytest.mark.parametrize("tail", [b"", b"LIST\x04\x00\x00\x00INFO"])
def test_a_wav_that_holds_nothing_is_said_to(tmp_path: Path, tail: bytes):
    path = tmp_path / "in.wav"
    path.write_bytes(whole("WAV", np.zeros(0)) + tail)
    with pytest.raises(InvalidAudio, match="holds no audio"):
        read_audio(path)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("WAV", {"subtype": "GSM610"}),
        ("WAV", {"subtype": "IMA_ADPCM"}),
        ("WAV", {"subtype": "MS_ADPCM"}),
        ("WAV", {"subtype": "ALAW"}),
        ("AIFF", {"subtype": "GSM610"}),
        ("OGG", {"subtype": "OPUS"}),
    ],
)
def test_codecs_of_telephones_and_recorders(tmp_path: Path, kind: str, how: dict):
    path = tmp_path / "in"
    path.write_bytes(whole(kind, **how))
    assert read_audio(path).secs == pytest.approx(SECS, abs=0.2)


@pytest.mark.parametrize("suffix", ["raw", "gsm", "vox", "txt", "mp3", "flac"])
def test_what_has_no_header_is_one_line_or_is_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(b"\x01\x02\x03\x04" * 4000)
    try:
        assert read_audio(path).secs > 0
    except InvalidAudio as error:
        assert "convert it" in str(error) and "\n" not in str(error)


def mp3_frames(content: bytes) -> list[bytes]:
    """Cut an MP3 of constant bit rate into frames, without the one that tells its length."""
    starts = [at for at in range(len(content) - 4) if content[at : at + 2] == content[:2]]
    frames = [content[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return [
        frame
        for frame in frames
        if not {b"Xing", b"Info"} & {frame[4 + s : 8 + s] for s in (9, 17, 32)}
    ]


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_without_a_table_is_as_long_as_its_frames(tmp_path: Path, loud_first: bool):
    """Of a variable bit rate the first frame makes the guess: too short, or too long."""
    parts = [
        whole("MP3", pcm, bitrate_mode="CONSTANT", compression_level=level)
        for pcm, level in (
            (np.random.default_rng(0).normal(0, 0.2, 2 * RATE_HZ), 0.0),
            (np.zeros(8 * RATE_HZ), 0.9),
        )
    ]
    frames = [b"".join(mp3_frames(bytes(part))) for part in parts]
    path = tmp_path / "in.mp3"
    path.write_bytes(b"".join(frames if loud_first else frames[::-1]))
    assert read_audio(path).secs == pytest.approx(10.0, abs=0.4)


def test_a_pipe_is_read_to_its_end(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(with_sizes(whole("WAV"), -1, -1),))
    writer.start()
    assert read_audio(pipe).secs == pytest.approx(SECS, abs=0.01)
    writer.join()


def test_a_pipe_that_gives_nothing_or_too_much(tmp_path: Path, monkeypatch):
    with pytest.raises(InvalidAudio, match="nothing came"):
        read_audio(Path("/dev/null"))
    monkeypatch.setattr(audio_file, "MAX_BYTES", 1 << 16)
    with pytest.raises(InvalidAudio, match="GiB"):
        read_audio(Path("/dev/zero"))


def test_a_length_that_is_not_told_may_be_too_much(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(audio_file, "MAX_SECS", 2.0)
    path = tmp_path / "in.flac"
    path.write_bytes(UNFINISHED["flac"])
    with pytest.raises(InvalidAudio, match="minutes long"):
        read_audio(path)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
@pytest.mark.parametrize(
    "name", [b"ges\xe4gt.wav", b"-.wav", b"[red]\n.wav", "Überfall 音.wav".encode()]
)
def test_a_file_may_have_any_name(tmp_path: Path, name: bytes):
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path.write_bytes(whole("WAV"))
    assert read_audio(path).secs == pytest.approx(SECS, abs=0.01)
    with pytest.raises(InvalidAudio) as error:
        read_audio(path.with_suffix(".gone"))
    str(error.value).encode()  # a name that is no text is shown as text


@pytest.mark.parametrize("name", ["x" * 300, "loop", "in.wav/inside"])
def test_names_that_lead_nowhere(tmp_path: Path, name: str):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "in.wav").write_bytes(whole("WAV"))
    with pytest.raises(InvalidAudio):
        read_audio(tmp_path / name)


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize(
    "kind", ["wav", "flac", "aiff", "au", "caf", "w64", "ogg", "opus", "mp3", "voc"]
)
def test_what_ffmpeg_writes_to_a_pipe(tmp_path: Path, kind: str):
    command = ["ffmpeg", "-v", "error", "-i", QUESTION, "-f", kind]
    if kind == "mp3":
        command += ["-q:a", "4", "-write_xing", "0"]
    path = tmp_path / "in"
    path.write_bytes(subprocess.run([*command, "-"], capture_output=True, check=True).stdout)
    assert read_audio(path).secs == pytest.approx(soundfile.info(QUESTION).duration, abs=0.15)


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize("kind", ["adts", "webm", "s16le", "ac3"])
def test_what_ffmpeg_writes_and_nobody_here_reads(tmp_path: Path, kind: str):
    command = ["ffmpeg", "-v", "error", "-i", QUESTION, "-f", kind, "-"]
    path = tmp_path / "in"
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    with pytest.raises(InvalidAudio, match="ffmpeg"):
        read_audio(path)
