"""Audio files whose header does not tell their length: a recorder died, or they came by a pipe.

libsndfile reads most of them. What it takes for empty or malformed is mended here, in memory.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_UNKNOWN_32, _UNKNOWN_64 = 2**32 - 1, 2**64 - 1

_KBITS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Of MPEG layer III: bit rates by version 1 or 2, sample rates by the version's two bits."""


def mend(content: bytes) -> bytes | None:
    """Write the length of the audio into a header that does not tell it.

    Args:
        content: The whole file.

    Returns:
        The file with a header that tells how much audio follows. ``None`` if its kind is not known
        here, or if it holds no audio.
    """
    for magics, mend_kind in _KINDS.items():
        if content.startswith(magics):
            return mend_kind(content)
    return None


def _mend_riff(content: bytes) -> bytes | None:
    """WAV and RF64, of which a recorder writes the sizes last."""
    order = ">" if content.startswith(b"RIFX") else "<"
    found = _find_chunk(content, 12, b"data", order + "I")
    if found is None:
        return None
    body_at, declared = found
    left = len(content) - body_at
    if left == 0 or (declared == 0 and _are_chunks(content, body_at, order)):
        return None
    fixed = bytearray(content)
    if sizes := _find_chunk(content, 12, b"ds64", order + "I"):
        # An RF64 of less than 4 GiB is a WAV whose spare chunk is not read.
        fixed[0:4] = b"RIFF"
        fixed[sizes[0] - 8 : sizes[0] - 4] = b"JUNK"
    struct.pack_into(order + "I", fixed, 4, min(len(content) - 8, _UNKNOWN_32))
    struct.pack_into(order + "I", fixed, body_at - 4, min(left, _UNKNOWN_32))
    return bytes(fixed)


def _mend_caf(content: bytes) -> bytes | None:
    """Core Audio, which allows an unknown size that libsndfile does not."""
    found = _find_chunk(content, 8, b"data", ">Q")
    if found is None:
        return None
    fixed = bytearray(content)
    struct.pack_into(">Q", fixed, found[0] - 8, len(content) - found[0])
    return bytes(fixed)


def _mend_au(content: bytes) -> bytes | None:
    fixed = bytearray(content)
    if len(content) < 12:
        return None
    struct.pack_into(">I", fixed, 8, _UNKNOWN_32)
    return bytes(fixed)


def _mend_ogg(content: bytes) -> bytes | None:
    """Leave out a page of which only the beginning was written."""
    last = content.rfind(b"OggS")
    while last > 0 and last + _ogg_page_bytes(content, last) > len(content):
        content = content[:last]
        last = content.rfind(b"OggS")
    return content if last > 0 else None


def _ogg_page_bytes(content: bytes, at: int) -> int:
    segments = content[at + 26 : at + 27]
    if not segments:
        return 27
    table = content[at + 27 : at + 27 + segments[0]]
    return 27 + segments[0] + sum(table)


@dataclass(frozen=True)
class _Mp3Frame:
    at: int
    size: int
    samples: int
    rate_hz: int
    is_mono: bool
    header: bytes


def count_mp3_samples(content: bytes) -> int | None:
    """Count what an MP3 holds, frame by frame: without a table, its length is only guessed.

    Args:
        content: The whole file.

    Returns:
        Samples of one channel; ``None`` if it is not an MP3.
    """
    frames = list(_mp3_frames(content))
    if not frames:
        return None
    return sum(frame.samples for frame in frames) - (
        frames[0].samples if _tells_its_length(content, frames[0]) else 0
    )


def mend_mp3(content: bytes) -> bytes | None:
    """Put a frame with the number of frames in front of an MP3, as its encoder should have done.

    Args:
        content: The whole file.

    Returns:
        The audio with that frame ahead; ``None`` if it is not an MP3.
    """
    frames = list(_mp3_frames(content))
    if frames and _tells_its_length(content, frames[0]):
        del frames[0]
    if not frames:
        return None
    first = frames[0]
    is_version_1 = first.samples == 1152
    side_bytes = {(1, 0): 32, (1, 1): 17, (0, 0): 17, (0, 1): 9}[is_version_1, first.is_mono]
    # At 64 kbit/s or more there is room for what is told.
    for index in range(5, 15):
        header = bytes([0xFF, first.header[1] | 1, index << 4 | first.header[2] & 0x0C])
        told = _read_mp3_header(header + first.header[3:4], 0)
        if told is not None and told.size >= side_bytes + 16:
            break
    else:
        return None
    frame = bytearray(told.size)
    frame[:4] = told.header
    frame[4 + side_bytes : 16 + side_bytes] = b"Xing" + struct.pack(">II", 1, len(frames))
    return bytes(frame) + content[first.at :]


def _mp3_frames(content: bytes) -> Iterator[_Mp3Frame]:
    at = _id3_bytes(content)
    while (at := content.find(b"\xff", at)) >= 0:
        frame = _read_mp3_header(content, at)
        # Bytes that look like a header are one if another follows, or the end.
        if frame is None or not _is_followed(content, frame):
            at += 1
            continue
        if at + frame.size <= len(content):
            yield frame
        at += frame.size


def _is_followed(content: bytes, frame: _Mp3Frame) -> bool:
    after = frame.at + frame.size
    return after >= len(content) or _read_mp3_header(content, after) is not None


def _read_mp3_header(content: bytes, at: int) -> _Mp3Frame | None:
    header = content[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # layer III
        return None
    version, rate, kbits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate == 3 or kbits in (0, 15):
        return None
    rate_hz = _RATES_HZ[version][rate]
    samples = 1152 if version == 3 else 576
    bits_per_sec = 1000 * _KBITS[1 if version == 3 else 2][kbits - 1]
    size = samples // 8 * bits_per_sec // rate_hz + (header[2] >> 1 & 1)
    return _Mp3Frame(at, size, samples, rate_hz, header[3] >> 6 == 3, bytes(header))


def _tells_its_length(content: bytes, frame: _Mp3Frame) -> bool:
    body = content[frame.at : frame.at + frame.size]
    return any(mark in body[:44] for mark in (b"Xing", b"Info", b"VBRI"))


def _id3_bytes(content: bytes) -> int:
    if not content.startswith(b"ID3") or len(content) < 10:
        return 0
    size = 0
    for seven_bits in content[6:10]:
        size = size << 7 | seven_bits & 0x7F
    return 10 + size


def _find_chunk(content: bytes, at: int, name: bytes, size_format: str) -> tuple[int, int] | None:
    """Return where the body of a chunk begins, and its size as declared."""
    size_bytes = struct.calcsize(size_format)
    while at + 4 + size_bytes <= len(content):
        (declared,) = struct.unpack_from(size_format, content, at + 4)
        body_at = at + 4 + size_bytes
        if content[at : at + 4] == name:
            return body_at, declared
        at = body_at + declared + (declared % 2 if size_bytes == 4 else 0)
    return None


def _are_chunks(content: bytes, at: int, order: str) -> bool:
    """Tell whether nothing but whole chunks follows: then the one before is really empty."""
    while at + 8 <= len(content):
        (declared,) = struct.unpack_from(order + "I", content, at + 4)
        if not content[at : at + 4].isascii() or declared == 0:
            return False
        at += 8 + declared + declared % 2
    return len(content) <= at <= len(content) + 1


_KINDS = {
    (b"RIFF", b"RIFX", b"RF64", b"BW64"): _mend_riff,
    (b"caff",): _mend_caf,
    (b".snd",): _mend_au,
    (b"OggS",): _mend_ogg,
}
