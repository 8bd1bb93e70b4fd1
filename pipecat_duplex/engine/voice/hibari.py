"""A near-human voice that is quick on a CPU: the package ``hibari-tts``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipecat_duplex.engine.voice.tts import Sound
from pipecat_duplex.session import SAMPLE_RATE_HZ

_NAME = "heart"

_LEVEL = 2.4
"""Makes hibari as loud as the embedded model's own voice."""

_QUIET = 0.004
"""Below this amplitude a phrase has not begun, or is over."""

_EDGE_SAMPLES = SAMPLE_RATE_HZ // 100
"""Sound that is kept before the first and after the last loud sample, and faded."""

LONGEST_WORD = 64
"""Letters of a word; what is longer is none."""

_LAST_LATIN = 0x24F

_PHONEME_ENDS = b"/CumSum_output_0"
_PHONEME_FRAME_SECS = 0.025


def load_hibari() -> "HibariTTS":
    """Load the voice. Blocks."""
    from hibari import Hibari
    from hibari.voices import voice_path

    return HibariTTS(Hibari(_NAME, model=_with_phoneme_ends(voice_path(_NAME))))


class HibariTTS:
    """The voice ``heart`` of the package ``hibari-tts`` (Apache-2.0): American English, a woman's.

    It was distilled from Kokoro-82M, has 6 million parameters, and speaks about a hundred times
    faster than real time on one core.
    """

    def __init__(self, voice):
        """Initialize.

        Args:
            voice: A ``hibari.Hibari`` whose model tells last where each phoneme ends.
        """
        self._voice = voice
        self.speak(("ready.",))  # reads its dictionary

    def lacks(self, word: str) -> bool:
        """Whether a word has letters of another script than Latin, or is too long to be one."""
        letters = [char for char in word if char.isalpha()]
        return len(letters) > LONGEST_WORD or any(ord(char) > _LAST_LATIN for char in letters)

    def speak(self, words: Sequence[str]) -> Sound:
        """Speak a phrase; see :class:`TTS`."""
        from hibari import dsp

        phonemes = self._phonemes(words)
        ids = self._voice.ids(" ".join(phonemes))
        if len(ids) < 3:  # nothing but punctuation
            return Sound(np.zeros(0, np.float32), (0.0,) * len(words))
        inputs = {"ids": np.array([ids], np.int64), "speed": np.ones(1, np.float32)}
        *spectrum, ends = map(np.asarray, self._voice.sess.run(None, inputs))
        lh, theta, ln, lr, phi, f0 = (part[0] for part in spectrum)
        pcm = dsp.synth(lh, theta, ln, lr, phi, f0, np.random.default_rng(0))
        return _trimmed(_LEVEL * pcm, _word_starts(phonemes, np.ravel(ends)))

    def _phonemes(self, words: Sequence[str]) -> list[str]:
        """Return the phonemes of each word, as it sounds among the others."""
        known = self._voice.vocab
        spoken = self._voice.g2p(" ".join(words)).split(" ")
        if len(spoken) != len(words):  # some were parted: then each as it sounds alone
            spoken = [self._voice.g2p(word) for word in words]
        return ["".join(symbol for symbol in word if symbol in known) for word in spoken]


def _with_phoneme_ends(path: str) -> bytes:
    """Return a model of hibari's with one more output: where each phoneme ends."""
    # Protocol buffers are merged where one stands behind another, so a field can be added to a
    # model without reading it: graph (7), output (12), name (1), each with its length.
    output = _PHONEME_ENDS
    for tag in (0x0A, 0x62, 0x3A):
        output = bytes([tag, len(output)]) + output
    return Path(path).read_bytes() + output


def _word_starts(phonemes: Sequence[str], ends: np.ndarray) -> list[float]:
    """Return when each word begins, from the frame in which each phoneme ends.

    The first phoneme is the silence before, and one stands between two words.
    """
    starts, position = [], 0
    for word in phonemes:
        starts.append(float(ends[min(position, len(ends) - 1)]) * _PHONEME_FRAME_SECS)
        position += len(word) + 1
    return starts


def _trimmed(pcm: np.ndarray, starts_secs: Sequence[float]) -> Sound:
    """Leave out the silence around a phrase."""
    loud = np.flatnonzero(np.abs(pcm) > _QUIET)
    if not len(loud):
        return Sound(np.zeros(0, np.float32), (0.0,) * len(starts_secs))
    first = max(int(loud[0]) - _EDGE_SAMPLES, 0)
    cut = np.clip(pcm[first : int(loud[-1]) + _EDGE_SAMPLES], -1.0, 1.0).astype(np.float32)
    edge = min(_EDGE_SAMPLES, len(cut) // 2)
    ramp = np.linspace(0.0, 1.0, edge, dtype=np.float32)
    cut[:edge] *= ramp
    cut[len(cut) - edge :] *= ramp[::-1]
    longest_secs = len(cut) / SAMPLE_RATE_HZ
    return Sound(
        cut, tuple(min(max(s - first / SAMPLE_RATE_HZ, 0.0), longest_secs) for s in starts_secs)
    )
