"""Ogg-Opus streams, as every server and client of Moshi's protocol speaks them.

A frame of 80 ms becomes two packets of 40 ms and comes out whole, so no audio is held back; what is
left is the encoder's look-ahead of 6.5 ms. Encoding a step takes about 1 ms, decoding it 0.1 ms.
"""

import numpy as np

from pipecat_duplex.session import SAMPLE_RATE_HZ, InvalidAudio, MissingExtra

MAX_UNDECODED_BYTES = 256 * 1024
"""Bytes that may come without any audio in them: a page has 64 KiB at most, a packet under 8."""

_SLICE_BYTES = 512


class OpusEncoder:
    """Writes one stream."""

    def __init__(self):
        """Initialize; the stream's headers come with the first audio.

        Raises:
            MissingExtra: ``sphn`` is not installed.
        """
        self._writer = _import_sphn().OpusStreamWriter(SAMPLE_RATE_HZ)

    def encode(self, pcm: np.ndarray) -> bytes:
        """Return the part of the stream that holds this audio.

        Args:
            pcm: Float32, 24 kHz mono, of a length that Opus knows, such as ``STEP_SAMPLES``.
        """
        return self._writer.append_pcm(pcm)


class OpusDecoder:
    """Reads one stream, which may be cut into messages anywhere."""

    def __init__(self):
        """Initialize before the stream's first byte.

        Raises:
            MissingExtra: ``sphn`` is not installed.
        """
        self._reader = _import_sphn().OpusStreamReader(SAMPLE_RATE_HZ)
        self._undecoded_bytes = 0

    def decode(self, data: bytes, max_samples: int | None = None) -> np.ndarray:
        """Return the audio that these bytes complete.

        Args:
            data: The next bytes of the stream.
            max_samples: Refuse more than this: a few bytes of Opus can stand for minutes.

        Returns:
            Float32 in [-1, 1], 24 kHz mono, shape ``(n,)``, often empty.

        Raises:
            InvalidAudio: This is no Ogg-Opus, or too much of it. The stream is lost.
        """
        parts: list[np.ndarray] = []
        samples = 0
        for start in range(0, len(data), _SLICE_BYTES):
            piece = data[start : start + _SLICE_BYTES]
            pcm = self._append(piece)
            samples += len(pcm)
            self._undecoded_bytes = 0 if len(pcm) else self._undecoded_bytes + len(piece)
            if max_samples is not None and samples > max_samples:
                raise InvalidAudio(f"more than {max_samples} samples at once")
            if self._undecoded_bytes > MAX_UNDECODED_BYTES:
                raise InvalidAudio(f"no audio in {self._undecoded_bytes} bytes")
            parts.append(pcm)
        if not samples:
            return np.zeros(0, np.float32)
        return np.clip(np.nan_to_num(np.concatenate(parts)), -1, 1)

    def _append(self, data: bytes) -> np.ndarray:
        try:
            return self._reader.append_bytes(data)
        except Exception as e:
            raise InvalidAudio(f"not an Ogg-Opus stream: {e}") from e
        except BaseException as e:
            # A panic of the Rust code inside is no Exception, and must not end the process.
            if type(e).__name__ != "PanicException":
                raise
            raise InvalidAudio(f"not an Ogg-Opus stream: {e}") from e


def has_opus() -> bool:
    """Whether Ogg-Opus can be spoken at all."""
    try:
        _import_sphn()
    except MissingExtra:
        return False
    return True


def _import_sphn():
    try:
        import sphn
    except ModuleNotFoundError as e:
        raise MissingExtra(
            "audio in Opus needs sphn, which is not installed: pip install 'pipecat-duplex[opus]'"
        ) from e
    return sphn
