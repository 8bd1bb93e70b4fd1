"""Who the agent is: a voice and a role, as frames that a conversation begins with.

The format is PersonaPlex's: a clip of the voice as if the agent had just said it, half a second of
silence, the role as text between two ``<system>`` marks, one token a frame over the agent's
silence, and half a second of silence. The user is a steady tone all the while.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.engine.model import Parts
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    TEXT_PADDING,
    DuplexError,
    InvalidPrompt,
    SessionConfig,
)

SILENT_FRAMES = 6
SETTLING_STEPS = 13
"""Steps after which a codec's codes of a steady sound are those of the sound."""

TONE_HZ = 440.0
TONE_AMPLITUDE = 0.5
VOICE_LEVEL_DB = -24.0
MAX_VOICE_SECS = 30.0

KEPT_CLIPS = 16
"""Voices that are kept in memory once they were read, of up to 2.9 MB each."""

# A part of a voice so far below its mean level is a pause.
PAUSE_BELOW_MEAN_DB = 10.0

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")

Encode = Callable[[np.ndarray], Parts[np.ndarray]]
"""From audio, float32, shape ``(steps, STEP_SAMPLES)``, to codes, shape ``(8, steps)``."""


def find_voices(folder: Path | None) -> dict[str, Path]:
    """Return the voices of a folder by their key, the name of the file without its ending.

    Raises:
        DuplexError: There is no such folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise DuplexError(f"there is no folder of voices {folder}")
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS)
    return {path.stem: path for path in files}


class Voices:
    """The voices that personas may have. Nothing else can be named: no caller's path is opened."""

    def __init__(self, folder: Path | None):
        """Initialize; files are read when they are asked for.

        Args:
            folder: Where the recordings are; without one there are no voices.

        Raises:
            DuplexError: There is no such folder.
        """
        self._files = find_voices(folder)
        self._clips: OrderedDict[str, np.ndarray] = OrderedDict()

    def key(self, name: str) -> str:
        """Return the key of a voice.

        Args:
            name: The key, or the file name that PersonaPlex's clients send.

        Raises:
            InvalidPrompt: There is no such voice.
        """
        key = re.sub(r"\.(pt|wav|flac|ogg|mp3)$", "", name)
        if key not in self._files:
            known = ", ".join(self._files) or "none"
            raise InvalidPrompt(f"there is no voice {name[:100]!r}; there are: {known}")
        return key

    def read(self, key: str) -> np.ndarray:
        """Return a voice as :func:`read_voice` does. Blocks; for any thread.

        Raises:
            InvalidPrompt: The file cannot be read, is silent, or is too long.
        """
        clip = self._clips.get(key)
        if clip is None:
            clip = self._clips[key] = read_voice(self._files[key])
            while len(self._clips) > KEPT_CLIPS:
                self._clips.popitem(last=False)
        return clip


def wrap_role(text: str) -> str:
    """Put a role between its marks, unless it is there already."""
    text = text.strip()
    wrapped = len(text) > 16 and text.startswith("<system>") and text.endswith("<system>")
    return text if wrapped else f"<system> {text} <system>"


class Persona(NamedTuple):
    """Who the agent of one conversation is.

    Parameters:
        role: Tokens of its role, with its marks; none if it has no role.
        voice: The key of its voice, or ``None``.
        clip: The voice, float32, shape ``(steps, STEP_SAMPLES)``, or ``None``.
    """

    role: tuple[int, ...] = ()
    voice: str | None = None
    clip: np.ndarray | None = None

    @property
    def frames(self) -> int:
        """Number of frames that it takes of the model's context."""
        clip = 0 if self.clip is None else len(self.clip)
        return clip + 2 * SILENT_FRAMES + len(self.role) - 1


def read_persona(config: SessionConfig, vocabulary: Vocabulary, voices: Voices) -> Persona:
    """Read what a conversation asks for, a role or a voice or both. Blocks.

    Args:
        config: What the conversation asks for.
        vocabulary: What the monologue is made of.
        voices: The voices that there are.

    Raises:
        InvalidPrompt: The voice is not known or cannot be read.
    """
    role: tuple[int, ...] = ()
    if config.text_prompt:
        role = tuple(vocabulary.tokens(wrap_role(config.text_prompt)))
    if not config.voice_prompt:
        return Persona(role)
    voice = voices.key(config.voice_prompt)
    return Persona(role, voice, voices.read(voice))


class Casting:
    """Makes the frames that a persona begins with. Keeps what was encoded once."""

    def __init__(self):
        """Initialize without voices."""
        self._clips: dict[str, np.ndarray] = {}
        self._steady: tuple[np.ndarray, np.ndarray] | None = None

    def frames(self, persona: Persona, encode: Encode) -> Parts[np.ndarray]:
        """Return the frames of a persona, int, shape ``(17, frames)``, a part at each ``next``.

        As in PersonaPlex, the very first frame of the prompt is in the model's past and left out.

        Args:
            persona: Who the agent is.
            encode: The codec.
        """
        silence, tone = yield from self._steady_codes(encode)
        padding = np.full(SILENT_FRAMES, TEXT_PADDING)
        parts = []
        if persona.voice is not None and persona.clip is not None:
            if persona.voice not in self._clips:
                self._clips[persona.voice] = yield from encode(persona.clip)
            clip = self._clips[persona.voice]
            parts.append((np.full(clip.shape[1], TEXT_PADDING), clip))
        parts.append((padding, silence))
        if persona.role:
            parts.append((np.array(persona.role), silence))
        parts.append((padding, silence))
        return np.concatenate([_lay(text, agent, tone) for text, agent in parts], axis=1)[:, 1:]

    def _steady_codes(self, encode: Encode) -> Parts[tuple[np.ndarray, np.ndarray]]:
        """Return the codes of silence and of the tone, each of shape ``(8, 1)``."""
        if self._steady is None:
            secs = np.arange(STEP_SAMPLES) / SAMPLE_RATE_HZ
            tone = TONE_AMPLITUDE * np.sin(2 * np.pi * TONE_HZ * secs)
            codes = []
            for frame in (np.zeros(STEP_SAMPLES), tone):
                steady = np.tile(frame.astype(np.float32), (SETTLING_STEPS, 1))
                encoded = yield from encode(steady)
                codes.append(encoded[:, -1:])
            self._steady = (codes[0], codes[1])
        return self._steady


def read_voice(path: Path) -> np.ndarray:
    """Read a voice: 24 kHz mono, at the level of speech, in whole steps.

    Returns:
        Float32, shape ``(steps, STEP_SAMPLES)``.

    Raises:
        InvalidPrompt: The file cannot be read, is silent, or is too long.
    """
    try:
        pcm, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise InvalidPrompt(f"the voice {path.stem} cannot be read: {error}") from error
    if not 0 < len(pcm) <= MAX_VOICE_SECS * rate_hz:
        raise InvalidPrompt(f"the voice {path.stem} is empty, or longer than {MAX_VOICE_SECS:g} s")
    pcm = pcm.mean(axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        pcm = Resampler(rate_hz, SAMPLE_RATE_HZ).push(pcm)
    steps = -(-len(pcm) // STEP_SAMPLES)
    whole = np.zeros(steps * STEP_SAMPLES, np.float32)
    whole[: len(pcm)] = pcm
    blocks = whole.reshape(steps, STEP_SAMPLES)
    power = np.mean(np.square(blocks, dtype=np.float64), axis=1)
    loud = power[power > power.mean() * 10 ** (-PAUSE_BELOW_MEAN_DB / 10)]
    if not len(loud) or loud.mean() < 1e-10:
        raise InvalidPrompt(f"the voice {path.stem} is silent")
    gain = 10 ** (VOICE_LEVEL_DB / 20) / np.sqrt(loud.mean())
    return np.clip(blocks * np.float32(gain), -1, 1)


def _lay(text: np.ndarray, agent: np.ndarray, user: np.ndarray) -> np.ndarray:
    frames = len(text)
    return np.concatenate(
        [text[None], *(np.broadcast_to(codes, (len(codes), frames)) for codes in (agent, user))]
    )
