"""Text to speech for given words, small enough to run beside the model on a CPU."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np


class Sound(NamedTuple):
    """Speech of some words.

    Parameters:
        pcm: Float32 in [-1, 1], shape ``(samples,)``, 24 kHz, without silence around it.
        word_starts_secs: When each word begins, one for each word that was given, rising.
    """

    pcm: np.ndarray
    word_starts_secs: tuple[float, ...]


class TTS(Protocol):
    """Speaks words. Called in a thread, for one phrase of one conversation at a time."""

    def speak(self, words: Sequence[str]) -> Sound:
        """Speak a phrase.

        Args:
            words: Words with their punctuation, numbers and symbols as words; at least one.
        """
        ...

    def lacks(self, word: str) -> bool:
        """Whether it has no sound for a word. Quick: called on the asyncio loop."""
        ...


class TTSThread:
    """Speaks for all conversations of an engine in a thread, first come, first served."""

    def __init__(self, tts: TTS):
        """Initialize; the thread starts with the first phrase.

        Args:
            tts: Who speaks.
        """
        self.tts = tts
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="duplex-tts")

    def speak(self, words: Sequence[str]) -> "Future[Sound]":
        """Let a phrase be spoken."""
        return self._pool.submit(self.tts.speak, tuple(words))

    def close(self) -> None:
        """Speak nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
