"""Audio samples in the two forms that pass through the package, and how loud they are.

Transports carry 16-bit bytes; the model takes and gives float32 in [-1, 1].
"""

import math

import numpy as np

from pipecat_duplex.session import InvalidAudio

PCM16_SCALE = 32_768
"""Steps of 16-bit audio from 0 to full scale."""

SILENCE_DB = -120.0
"""The lowest level that :func:`level_db` returns; 16-bit audio ends at about -98 dBFS."""


def as_mono(pcm: np.ndarray) -> np.ndarray:
    """Return mono float audio as float32, or refuse it.

    Args:
        pcm: Floating point, shape ``(n,)``, any ``n``.

    Returns:
        Float32, shape ``(n,)``; the same array if it is already float32.

    Raises:
        InvalidAudio: More than one dimension, or not floating point. Integers are refused because
            16-bit samples taken for floats would be 90 dB too loud.
    """
    pcm = np.asarray(pcm)
    if pcm.dtype == np.float32 and pcm.ndim == 1:
        return pcm
    if pcm.ndim != 1:
        raise InvalidAudio(f"expected mono audio of shape (n,), got shape {pcm.shape}")
    if not np.issubdtype(pcm.dtype, np.floating):
        raise InvalidAudio(f"expected float32 audio in [-1, 1], got {pcm.dtype}")
    return pcm.astype(np.float32, copy=False)


def pcm16_to_float(pcm16: bytes, channels: int = 1) -> np.ndarray:
    """Decode 16-bit audio and mix it down to mono.

    Args:
        pcm16: Signed 16-bit little-endian samples, channels interleaved.
        channels: Interleaved channels; their mean is taken.

    Returns:
        Float32 in [-1, 1), shape ``(len(pcm16) // (2 * channels),)``.

    Raises:
        InvalidAudio: ``channels`` is below 1, or the bytes end in the middle of a sample or of a
            group of channels.
    """
    if channels < 1:
        raise InvalidAudio(f"audio needs at least one channel, got {channels}")
    if len(pcm16) % (2 * channels):
        raise InvalidAudio(
            f"{len(pcm16)} bytes are not a whole number of 16-bit samples in {channels} channel(s)"
        )
    samples = np.frombuffer(pcm16, dtype="<i2").astype(np.float32)
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(axis=1)
    return samples / np.float32(PCM16_SCALE)


def float_to_pcm16(pcm: np.ndarray) -> bytes:
    """Encode mono float audio as 16-bit bytes; the inverse of :func:`pcm16_to_float`.

    Samples are rounded to the nearest step. Values outside [-1, 1) are clipped, and NaN becomes
    silence: a broken sample must not turn into a full-scale click.

    Args:
        pcm: Floating point, shape ``(n,)``, full scale 1.

    Returns:
        ``2 * n`` bytes, signed 16-bit little-endian.

    Raises:
        InvalidAudio: The array is not one-dimensional floating point.
    """
    steps = np.maximum(as_mono(pcm), -1)
    np.minimum(steps, 1 - 1 / PCM16_SCALE, out=steps)
    steps *= PCM16_SCALE
    if np.isnan(np.dot(steps, steps)):  # A sum shows a NaN at a fraction of the cost of a search.
        np.nan_to_num(steps, copy=False)
    return np.rint(steps, out=steps).astype("<i2").tobytes()


def level_db(pcm: np.ndarray) -> float:
    """Return the root mean square of the audio in dBFS.

    A full-scale square wave is at 0 dBFS, a full-scale sine at -3.

    Args:
        pcm: Floating point, shape ``(n,)``, full scale 1.

    Returns:
        The level, at least :data:`SILENCE_DB`, which also stands for audio without samples.

    Raises:
        InvalidAudio: The array is not one-dimensional floating point.
    """
    pcm = as_mono(pcm).astype(np.float64)
    power = float(np.dot(pcm, pcm)) / len(pcm) if pcm.size else 0.0
    return max(SILENCE_DB, 10 * math.log10(power)) if power > 0 else SILENCE_DB
