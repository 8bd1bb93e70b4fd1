"""Who the agent is: a voice and a role, as frames that a conversation begins with.

The format is PersonaPlex's: a clip of the voice as if the agent had just said it, half a second of
silence, the role as text between two ``<system>`` marks, one token a frame over the agent's
silence, and half a second of silence. The user is a steady tone all the while.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile

from pipecat_duplex.conversation.resampler import Resampler
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

# A part of a voice so far below its mean level is a pause.
PAUSE_BELOW_MEAN_DB = 10.0

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")

Encode = Callable[[np.ndarray], np.ndarray]
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


def known_voice(name: str, voices: Mapping[str, Path]) -> str:
    """Return the key of a voice.

    Args:
        name: The key, or the file name that PersonaPlex's clients send.
        voices: Files by key. Nothing else can be named: no caller's path is ever opened.

    Raises:
        InvalidPrompt: There is no such voice.
    """
    key = re.sub(r"\.(pt|wav|flac|ogg|mp3)$", "", name)
    if key not in voices:
        known = ", ".join(voices) or "none"
        raise InvalidPrompt(f"there is no voice {name[:100]!r}; there are: {known}")
    return key


def wrap_role(text: str) -> str:
    """Put a role between its marks, unless it is there already."""
    text = text.strip()
    wrapped = len(text) > 16 and text.startswith("<system>") and text.endswith("<system>")
    return text if wrapped else f"<system> {text} <system>"


class Casting:
    """Makes the frames that a persona begins with."""

    def __init__(self, vocabulary: Vocabulary, voices: Mapping[str, Path]):
        """Initialize.

        Args:
            vocabulary: What the monologue is made of.
            voices: Files by key.
        """
        self._vocabulary = vocabulary
        self._voices = voices
        self._clips: dict[str, np.ndarray] = {}
        self._steady: tuple[np.ndarray, np.ndarray] | None = None

    def frames(self, config: SessionConfig, encode: Encode) -> np.ndarray | None:
        """Return the frames of a persona, int, shape ``(17, frames)``; ``None`` if there is none.

        As in PersonaPlex, the very first frame of the prompt is in the model's past and left out.

        Args:
            config: What a conversation asks for.
            encode: The codec.

        Raises:
            InvalidPrompt: The voice is not known or cannot be read.
        """
        if not config.text_prompt and not config.voice_prompt:
            return None
        silence, tone = self._steady_codes(encode)
        padding = np.full(SILENT_FRAMES, TEXT_PADDING)
        parts = []
        if config.voice_prompt:
            clip = self._clip(config.voice_prompt, encode)
            parts.append((np.full(clip.shape[1], TEXT_PADDING), clip))
        parts.append((padding, silence))
        if config.text_prompt:
            role = self._vocabulary.tokens(wrap_role(config.text_prompt))
            parts.append((np.array(role), silence))
        parts.append((padding, silence))
        return np.concatenate([_lay(text, agent, tone) for text, agent in parts], axis=1)[:, 1:]

    def _clip(self, name: str, encode: Encode) -> np.ndarray:
        key = known_voice(name, self._voices)
        if key not in self._clips:
            self._clips[key] = encode(read_voice(self._voices[key]))
        return self._clips[key]

    def _steady_codes(self, encode: Encode) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of silence and of the tone, each of shape ``(8, 1)``."""
        if self._steady is None:
            secs = np.arange(STEP_SAMPLES) / SAMPLE_RATE_HZ
            tone = TONE_AMPLITUDE * np.sin(2 * np.pi * TONE_HZ * secs)
            silent, sounding = (
                encode(np.tile(frame.astype(np.float32), (SETTLING_STEPS, 1)))[:, -1:]
                for frame in (np.zeros(STEP_SAMPLES), tone)
            )
            self._steady = (silent, sounding)
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
