"""From a synthesiser's clean sound to a user's microphone: rooms, bands, noises, levels."""

from dataclasses import dataclass

import numpy as np

from training.sizes import SAMPLE_RATE


@dataclass(frozen=True)
class Microphone:
    """Where a user speaks and what picks it up. One session has one.

    Attributes:
        reverberation: time until the room's sound has fallen by 60 dB, in seconds; 0 is no room.
        band: lowest and highest frequency in Hz.
        tilt: change of the spectrum in dB an octave around 1 kHz.
        level: root mean square of speech in dB below full scale.
        noise: level of the background in dB relative to speech; None is digital silence.
        colour: the noise's spectral slope: its power falls with frequency to this exponent.
        seed: of the room's echoes and the noise.
    """

    reverberation: float
    band: tuple[float, float]
    tilt: float
    level: float
    noise: float | None
    colour: float
    seed: int


def draw_microphone(rng: np.random.Generator) -> Microphone:
    """A random microphone: a third are perfect, a fifth are telephones, most have some noise."""
    perfect = rng.random() < 0.3
    telephone = rng.random() < 0.2
    band = (
        (rng.uniform(200, 350), rng.uniform(3_000, 3_600))
        if telephone
        else (
            rng.uniform(20, 120),
            rng.choice([7_000.0, 8_000.0, 12_000.0]),
        )
    )
    return Microphone(
        reverberation=0.0 if perfect or rng.random() < 0.4 else rng.uniform(0.1, 0.5),
        band=(20.0, 12_000.0) if perfect else band,
        tilt=0.0 if perfect else rng.uniform(-3, 3),
        level=rng.uniform(-32, -14),
        noise=None if perfect or rng.random() < 0.2 else rng.uniform(-45, -12),
        colour=rng.uniform(0, 2),
        seed=int(rng.integers(2**31)),
    )


def record(samples: np.ndarray, microphone: Microphone, speech_level: float) -> np.ndarray:
    """What ``microphone`` makes of a stretch of sound.

    Args:
        samples: float32 mono at 24 kHz, with silence where nobody speaks.
        microphone: see ``Microphone``.
        speech_level: root mean square of the speech in ``samples``, as a factor of full scale.

    Returns:
        float32 of the same length, within [-1, 1].
    """
    heard = through_room(samples, microphone, speech_level) + background(len(samples), microphone)
    return np.clip(heard, -1, 1).astype(np.float32)


def through_room(samples: np.ndarray, microphone: Microphone, speech_level: float) -> np.ndarray:
    """The speech alone as the microphone picks it up."""
    sound = samples * (_target(microphone) / max(speech_level, 1e-4))
    spectrum = np.fft.rfft(sound, _fast_length(len(sound) + SAMPLE_RATE // 2))
    length = 2 * (len(spectrum) - 1)
    if microphone.reverberation:
        rng = np.random.default_rng(microphone.seed)
        spectrum = spectrum * np.fft.rfft(_room(microphone.reverberation, rng), length)
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum * _response(frequencies, microphone), length)[: len(sound)]


def background(length: int, microphone: Microphone) -> np.ndarray:
    """``length`` samples of the background alone."""
    if microphone.noise is None:
        return np.zeros(length)
    rng = np.random.default_rng(microphone.seed + 1)
    level = _target(microphone) * 10 ** (microphone.noise / 20)
    return level * _noise(length, microphone.colour, rng)


def echo(agent: np.ndarray, delay_secs: float, gain: float, rng: np.random.Generator) -> np.ndarray:
    """The agent's voice as a microphone beside its loudspeaker picks it up.

    Args:
        agent: what the loudspeaker is given, 24 kHz.
        delay_secs: until the direct sound arrives.
        gain: of the whole.
        rng: draws the loudspeaker and the room.
    """
    path = Microphone(
        reverberation=0.0 if rng.random() < 0.3 else rng.uniform(0.1, 0.6),
        band=(rng.uniform(30, 450), rng.uniform(3_000, 11_000)),
        tilt=rng.uniform(-4, 3),
        level=0.0,
        noise=None,
        colour=0.0,
        seed=int(rng.integers(2**31)),
    )
    sound = agent
    if rng.random() < 0.4:  # a small loudspeaker that is driven hard
        drive = rng.uniform(1, 6)
        sound = np.tanh(drive * agent) / drive
    heard = gain * through_room(sound, path, 1.0)
    late = round(delay_secs * SAMPLE_RATE)
    return np.concatenate([np.zeros(late), heard[: len(heard) - late]])


def _target(microphone: Microphone) -> float:
    """Root mean square of speech as a factor of full scale."""
    return 10 ** (microphone.level / 20)


def speech_level(samples: np.ndarray) -> float:
    """Root mean square of the louder half of a stretch of speech."""
    if len(samples) < 480:
        samples = np.resize(samples, 480)
    blocks = samples[: len(samples) // 480 * 480].reshape(-1, 480)
    power = np.sort((blocks**2).mean(1))
    return float(np.sqrt(power[len(power) // 2 :].mean()))


def _fast_length(length: int) -> int:
    """The next even length whose transform is quick."""
    return int(np.ceil(length / 4_800) * 4_800)


def _room(reverberation: float, rng: np.random.Generator) -> np.ndarray:
    """Impulse response: the direct sound, then exponentially fading noise."""
    length = int(min(reverberation, 0.5) * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    tail = rng.standard_normal(length) * 10 ** (-3 * time / reverberation)
    tail[: SAMPLE_RATE // 400] = 0
    tail *= rng.uniform(0.2, 0.8) / max(np.sqrt((tail**2).sum()), 1e-6)
    tail[0] = 1
    return tail


def _response(frequencies: np.ndarray, microphone: Microphone) -> np.ndarray:
    low, high = microphone.band
    octaves = np.log2(np.maximum(frequencies, 50) / 1_000)
    gain = 10 ** (microphone.tilt * np.clip(octaves, -3, 3) / 20)
    gain = gain / np.sqrt(1 + (low / np.maximum(frequencies, 1)) ** 8)
    return gain / np.sqrt(1 + (frequencies / high) ** 16)


def _noise(length: int, colour: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose power falls with frequency to the exponent ``colour``."""
    size = _fast_length(length)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 60)
    noise = np.fft.irfft(spectrum * frequencies ** (-colour / 2), size)[:length]
    return noise / max(noise.std(), 1e-9)
