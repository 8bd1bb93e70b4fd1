"""Sounds that are no speech: nobody means the agent by them.

All are made here from noise, pulses and tones, except music, which fluidsynth renders (Debian
packages ``fluidsynth`` and ``timgm6mb-soundfont``), and crowds, which are made of many voices.
"""

import functools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training.sizes import SAMPLE_RATE

Rng = np.random.Generator

_SOUNDFONT = Path("/usr/share/sounds/sf2/default-GM.sf2")
_MUSIC_SECS = 24.0


def draw_sound(rng: Rng) -> tuple[str, np.ndarray]:
    """The name of a kind of sound, and one of it: float32 at 24 kHz, peak 1."""
    kinds = [kind for kind in _SHARES if kind != "music" or can_play_music()]
    shares = np.array([_SHARES[kind] for kind in kinds], float)
    kind = str(rng.choice(kinds, p=shares / shares.sum()))
    return kind, _finish(_KINDS[kind](rng), rng)


def _finish(sound: np.ndarray, rng: Rng) -> np.ndarray:
    """Coloured a little, without a click at its ends, at full scale."""
    sound = _shaped(sound, lambda hertz: 2 ** (rng.uniform(-0.7, 0.7) * np.log2(hertz / 1000)))
    edge = min(len(sound) // 4, 72)
    sound[:edge] *= np.linspace(0, 1, edge)
    sound[len(sound) - edge :] *= np.linspace(1, 0, edge)
    return (sound / max(float(np.abs(sound).max()), 1e-6)).astype(np.float32)


def _shaped(sound: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The sound with a gain that depends on the frequency in hertz."""
    size = int(np.ceil((len(sound) + 1) / 4_800) * 4_800)
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 40)
    return np.fft.irfft(np.fft.rfft(sound, size) * gain(hertz), size)[: len(sound)]


def _resonances(sound: np.ndarray, centres: list[float], width: float) -> np.ndarray:
    """Formants, as a throat or a body gives them."""

    def gain(hertz: np.ndarray) -> np.ndarray:
        return sum(
            1 / (1 + ((hertz - c) / (width * (1 + c / 2000))) ** 2) / (1 + i)
            for i, c in enumerate(centres)
        )

    return _shaped(sound, gain)


def _noise(secs: float, slope: float, rng: Rng) -> np.ndarray:
    white = rng.standard_normal(round(secs * SAMPLE_RATE))
    return _shaped(white, lambda hertz: (hertz / 1000) ** (-slope / 2))


def _tone(hertz: np.ndarray, harmonics: int, fall: float) -> np.ndarray:
    """A tone whose frequency is given for each sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE
    highest = max(float(hertz.max()), 1.0)
    return sum(np.sin(k * phase) / k**fall for k in range(1, harmonics + 1) if k * highest < 11_000)


def _time(secs: float) -> np.ndarray:
    return np.arange(round(secs * SAMPLE_RATE)) / SAMPLE_RATE


def _burst(secs: float, rise: float, rng: Rng) -> np.ndarray:
    """An envelope that rises fast and falls slowly."""
    time = _time(secs)
    return np.minimum(time / rise, 1) * np.exp(-time / (secs * rng.uniform(0.15, 0.4)))


def _row(parts: list[np.ndarray], gaps: list[float]) -> np.ndarray:
    """Sounds one after another, each followed by its gap in seconds."""
    pieces = []
    for part, gap in zip(parts, gaps, strict=True):
        pieces += [part, np.zeros(round(gap * SAMPLE_RATE))]
    return np.concatenate(pieces)


def _cough(rng: Rng) -> np.ndarray:
    parts = []
    throat = [rng.uniform(350, 800), rng.uniform(1000, 1800), rng.uniform(2300, 3500)]
    for _ in range(rng.integers(1, 4)):
        secs = rng.uniform(0.07, 0.35)
        blast = _resonances(_noise(secs, rng.uniform(0, 1.2), rng), throat, 250)
        voice = _glottis(secs, rng.uniform(90, 320), rng.uniform(0.05, 0.3), rng)
        voice = _resonances(voice, throat, 120)
        share = rng.uniform(0, 0.8)
        mixed = blast / blast.std() + share * voice / max(voice.std(), 1e-6)
        parts.append(mixed * _burst(secs, rng.uniform(0.003, 0.03), rng) * rng.uniform(0.4, 1))
    return _row(parts, [rng.uniform(0.03, 0.35) for _ in parts])


def _glottis(secs: float, hertz: float, roughness: float, rng: Rng) -> np.ndarray:
    """A voice's pulses, rough ones for a cleared throat."""
    samples, position = np.zeros(round(secs * SAMPLE_RATE)), 0.0
    while position < len(samples):
        samples[int(position)] += rng.uniform(1 - roughness, 1)
        period = SAMPLE_RATE / hertz
        position += max(period * (1 + roughness * rng.standard_normal()), 40)
    return _shaped(samples, lambda f: 300 / (300 + f))


def _throat(rng: Rng) -> np.ndarray:
    parts = []
    for _ in range(rng.integers(1, 4)):
        secs = rng.uniform(0.12, 0.5)
        voice = _glottis(secs, rng.uniform(45, 150), rng.uniform(0.2, 0.5), rng)
        centres = [rng.uniform(300, 600), rng.uniform(900, 1400), 2500.0]
        voice = _resonances(voice, centres, 150)
        rasp = _resonances(_noise(secs, 1, rng), centres, 300)
        mixed = voice / voice.std() + rng.uniform(0.2, 1) * rasp / rasp.std()
        parts.append(mixed * np.hanning(len(mixed)) ** 0.5)
    return _row(parts, [rng.uniform(0.02, 0.2) for _ in parts])


def _laugh(rng: Rng) -> np.ndarray:
    hertz, pace = rng.uniform(110, 420), rng.uniform(0.14, 0.26)
    centres = [rng.uniform(450, 900), rng.uniform(1200, 1900), rng.uniform(2400, 3300)]
    parts, voiced = [], rng.uniform(0, 1.5)
    for index in range(rng.integers(3, 10)):
        secs = pace * rng.uniform(0.45, 0.75)
        tone = _glottis(secs, hertz * rng.uniform(0.9, 1.15) * 0.97**index, 0.05, rng)
        tone = _resonances(tone, centres, 100)
        air = _resonances(_noise(secs, 0.5, rng), centres, 400)
        mixed = voiced * tone / tone.std() + air / air.std()
        parts.append(mixed * np.hanning(len(mixed)) * 0.94**index)
    return _row(parts, [pace * rng.uniform(0.3, 0.55) for _ in parts])


def _breath(rng: Rng) -> np.ndarray:
    secs = rng.uniform(0.25, 1.6)
    air = _resonances(_noise(secs, rng.uniform(0, 1.5), rng), [rng.uniform(400, 1500), 2500], 900)
    peak = rng.uniform(0.2, 0.8)
    place = np.linspace(0, 1, len(air))
    return air * np.where(place < peak, place / peak, (1 - place) / (1 - peak)) ** rng.uniform(
        0.7, 2
    )


def _sneeze(rng: Rng) -> np.ndarray:
    blast = _noise(rng.uniform(0.2, 0.6), -0.5, rng)
    return _row(
        [_breath(rng) * 0.2, blast * _burst(len(blast) / SAMPLE_RATE, 0.01, rng)], [0.02, 0]
    )


def _click(rng: Rng) -> np.ndarray:
    secs = rng.uniform(0.006, 0.06)
    centres = [rng.uniform(300, 5000), rng.uniform(1000, 8000)]
    ping = _resonances(_noise(secs, 0, rng), centres, rng.uniform(60, 600))
    return ping / max(ping.std(), 1e-6) * _burst(secs, 0.0005, rng)


def _clicks(rng: Rng) -> np.ndarray:
    """Keys, a mouse, a pen, dishes."""
    parts = [_click(rng) * rng.uniform(0.3, 1) for _ in range(rng.integers(1, 25))]
    pace = rng.uniform(0.05, 0.3)
    return _row(parts, [pace * rng.uniform(0.3, 1.7) for _ in parts])


def _knocks(rng: Rng) -> np.ndarray:
    centres = [rng.uniform(70, 400), rng.uniform(300, 1200)]
    parts = []
    for _ in range(rng.integers(1, 6)):
        secs = rng.uniform(0.05, 0.5)
        thud = _resonances(_noise(secs, 1, rng), centres, rng.uniform(30, 150))
        parts.append(thud / thud.std() * _burst(secs, 0.002, rng))
    return _row(parts, [rng.uniform(0.05, 0.35) for _ in parts])


def _hum(rng: Rng) -> np.ndarray:
    secs = rng.uniform(0.5, 4)
    base = np.full(round(secs * SAMPLE_RATE), rng.choice([50, 60, 100, 120, rng.uniform(40, 300)]))
    tone = _tone(base, int(rng.integers(2, 20)), rng.uniform(0.4, 2))
    return tone / tone.std() + rng.uniform(0, 1) * _noise(secs, rng.uniform(0, 2), rng)


def _whoosh(rng: Rng) -> np.ndarray:
    """Wind, water, a car, paper: noise that comes and goes."""
    secs = rng.uniform(0.3, 4)
    noise = _noise(secs, rng.uniform(-0.5, 2.5), rng)
    points = np.linspace(0, 1, int(rng.integers(4, 4 + 8 * secs)))
    return noise * np.interp(np.linspace(0, 1, len(noise)), points, rng.random(len(points)) ** 2)


def _siren(rng: Rng) -> np.ndarray:
    secs, low = rng.uniform(1, 4), rng.uniform(300, 900)
    swing = np.sin(2 * np.pi * rng.uniform(0.3, 5) * _time(secs) + rng.uniform(0, 6))
    if rng.random() < 0.4:
        swing = np.sign(swing)
    return _tone(low * (1 + rng.uniform(0.1, 0.5) * (1 + swing)), int(rng.integers(1, 8)), 1.2)


def _ringing(rng: Rng) -> np.ndarray:
    """A telephone, a doorbell, an alarm clock, a device that beeps."""
    parts = []
    notes = rng.uniform(350, 3200, int(rng.integers(1, 5)))
    secs, decay = rng.uniform(0.06, 0.7), rng.uniform(0.1, 3)
    warble = rng.uniform(0, 0.5) * (rng.random() < 0.5)
    for _ in range(rng.integers(1, 8)):
        hertz = float(rng.choice(notes))
        time = _time(secs)
        swing = 1 + warble * np.sign(np.sin(2 * np.pi * rng.uniform(8, 25) * time))
        tone = _tone(hertz * np.ones_like(time) * swing, int(rng.integers(1, 5)), 1.0)
        parts.append(tone * np.exp(-time * decay))
    gap = rng.uniform(0.01, 0.5)
    return _row(parts, [gap for _ in parts])


def _animal(rng: Rng) -> np.ndarray:
    """Something that barks, mews or chirps."""
    parts, high = [], rng.uniform(150, 3000)
    bend, rough = rng.uniform(-0.5, 1), rng.uniform(0, 1)
    for _ in range(rng.integers(1, 6)):
        secs = rng.uniform(0.06, 0.6)
        arc = np.sin(np.pi * np.linspace(0, 1, round(secs * SAMPLE_RATE)))
        tone = _tone(high * (1 + bend * arc) * rng.uniform(0.9, 1.1), 12, rng.uniform(0.3, 1.5))
        noise = _noise(secs, 0.5, rng)
        parts.append((tone / tone.std() + rough * noise / noise.std()) * arc)
    return _row(parts, [rng.uniform(0.05, 0.4) for _ in parts])


def _random(rng: Rng) -> np.ndarray:
    """Bursts of no known source: noise or tone, of any band and shape."""
    parts = []
    for _ in range(rng.integers(1, 9)):
        secs = 10 ** rng.uniform(-1.5, 0.1)
        noise = _noise(secs, rng.uniform(-1, 2.5), rng)
        if rng.random() < 0.7:
            centres = (10 ** rng.uniform(2.0, 3.8, int(rng.integers(1, 4)))).tolist()
            noise = _resonances(noise, centres, 10 ** rng.uniform(1.5, 3))
        if rng.random() < 0.35:
            ends = 10 ** rng.uniform(1.9, 3.4, 2)
            tone = _tone(
                np.linspace(*ends, len(noise)), int(rng.integers(1, 16)), rng.uniform(0.5, 2)
            )
            noise = noise / noise.std() * rng.random() + tone / tone.std()
        shape = np.hanning(len(noise)) if rng.random() < 0.5 else _burst(secs, 0.003, rng)
        size = min(len(noise), len(shape))
        parts.append(noise[:size] / max(noise.std(), 1e-9) * shape[:size] * rng.uniform(0.2, 1))
    pace = rng.uniform(0.02, 0.4)
    return _row(parts, [pace * rng.uniform(0.2, 2) for _ in parts])


def can_play_music() -> bool:
    """Whether fluidsynth and a sound font are installed."""
    return bool(shutil.which("fluidsynth")) and _SOUNDFONT.exists()


@functools.lru_cache(maxsize=8)
def _piece(seed: int) -> np.ndarray:
    """Half a minute of music nobody wrote."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder) / "music.mid", Path(folder) / "music.wav"
        midi.write_bytes(_midi(rng))
        command = ["fluidsynth", "-n", "-i", "-q", "-r", str(SAMPLE_RATE), "-F", str(wave)]
        subprocess.run([*command, str(_SOUNDFONT), str(midi)], check=True, capture_output=True)
        samples, rate = soundfile.read(wave, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(1), rate, SAMPLE_RATE)


def _midi(rng: Rng) -> bytes:
    """A MIDI file: a melody, chords, a bass and drums on their own channels, some of them."""
    ticks, events = 240, []
    scale = np.cumsum([0, *rng.choice([1, 2, 2, 3], 14)]) + int(rng.integers(36, 60))
    tempo = rng.uniform(70, 170)
    beats = int(_MUSIC_SECS * tempo / 60)
    channels = [c for c in (0, 1, 2, 9) if rng.random() < 0.6] or [0]
    for channel in channels:
        program, place = int(rng.integers(0, 104)), 0
        events.append((0, bytes([0xC0 | channel, program])))
        while place < beats * ticks:
            length = int(ticks * rng.choice([0.25, 0.5, 0.5, 1, 2]))
            size = {0: 1, 1: 3, 2: 1, 9: 1}[channel]
            notes = rng.integers(35, 60, size) if channel == 9 else rng.choice(scale, size)
            notes = notes + {0: 12, 1: 0, 2: -12, 9: 0}[channel]
            for note in np.clip(notes, 20, 110).tolist():
                events.append((place, bytes([0x90 | channel, note, int(rng.integers(50, 120))])))
                events.append((place + length, bytes([0x80 | channel, note, 0])))
            place += length
    track = b"\x00\xff\x51\x03" + int(60_000_000 / tempo).to_bytes(3, "big")
    last = 0
    for place, message in sorted(events):
        track += _variable(place - last) + message
        last = place
    track += b"\x00\xff\x2f\x00"
    head = b"MThd" + struct.pack(">IHHH", 6, 0, 1, ticks)
    return head + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable(number: int) -> bytes:
    """A number as MIDI writes it."""
    octets = [number & 127]
    while number := number >> 7:
        octets.insert(0, 128 | (number & 127))
    return bytes(octets)


def _music(rng: Rng) -> np.ndarray:
    piece = _piece(int(rng.integers(40)))
    length = round(rng.uniform(0.5, 5) * SAMPLE_RATE)
    start = int(rng.integers(0, max(len(piece) - length, 1)))
    return piece[start : start + length].astype(np.float64)


def crowd(voices: list[np.ndarray], rng: Rng) -> np.ndarray:
    """Many who speak at once and to each other, behind a wall or in a room; peak 1."""
    length = round(rng.uniform(1, 5) * SAMPLE_RATE)
    mixed = np.zeros(length)
    for voice in voices:
        shifted = np.roll(np.resize(voice, length), int(rng.integers(length)))
        mixed += shifted / max(float(shifted.std()), 1e-6) * rng.uniform(0.4, 1)
    edge = 10 ** rng.uniform(2.9, 3.8)
    mixed = _shaped(mixed, lambda hertz: 1 / (1 + (hertz / edge) ** 2))
    mixed *= np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / 4_800)
    return (mixed / max(float(np.abs(mixed).max()), 1e-6)).astype(np.float32)


_KINDS: dict[str, Callable[[Rng], np.ndarray]] = {
    "cough": _cough, "throat": _throat, "laugh": _laugh, "breath": _breath, "sneeze": _sneeze,
    "clicks": _clicks, "knocks": _knocks, "hum": _hum, "whoosh": _whoosh, "siren": _siren,
    "ringing": _ringing, "animal": _animal, "random": _random, "music": _music,
}  # fmt: skip
_SHARES = {
    "cough": 4, "throat": 1.5, "laugh": 2.5, "breath": 2, "sneeze": 0.7, "clicks": 2, "knocks": 1,
    "hum": 1, "whoosh": 1.5, "siren": 0.7, "ringing": 1.2, "animal": 1, "random": 4, "music": 3,
}  # fmt: skip
