"""The state from which a conversation is rebuilt, on another machine if need be.

Every step of a conversation is 17 numbers: the monologue, the agent's eight codebooks and the
user's eight. With them a language model that has never heard the conversation comes to the same
state. The codec's encoder also needs a few seconds of the user's audio.
"""

import json
import struct
from collections import deque
from dataclasses import dataclass

import numpy as np

from pipecat_duplex.session.errors import InvalidHistory
from pipecat_duplex.session.step import STEP_SAMPLES, Step

CODEBOOKS = 8
"""Numbers of a step for one voice."""

STREAMS = 1 + 2 * CODEBOOKS
"""Numbers in a step: the monologue, the agent's codebooks, the user's."""

AUDIO_STEPS = 50
"""Steps of the user's audio that are kept: 4 s."""

MAX_STEPS = 45_000
"""An hour: longer histories are refused."""

_HEADER = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ResumeKey:
    """Identifies which sessions can resume a conversation.

    Parameters:
        fingerprint: Identifies the checkpoint: only the one that made a history can restore it.
        context_steps: Steps that the language model can look back on.
    """

    fingerprint: str
    context_steps: int


@dataclass(frozen=True, eq=False)
class History:
    """A conversation, or its last part.

    Parameters:
        fingerprint: The checkpoint that it was held with.
        codes: Int32, shape ``(17, steps)``: monologue, agent and user of each step.
        complete: Whether it reaches back to the beginning.
        audio: The user's last audio, float32, shape ``(n, STEP_SAMPLES)``, 24 kHz. It ends with
            the last step.
    """

    fingerprint: str
    codes: np.ndarray
    complete: bool
    audio: np.ndarray

    def __post_init__(self):
        """Check types and shapes.

        Raises:
            InvalidHistory: No history has such types or shapes.
        """
        for name, array in (("codes", self.codes), ("audio", self.audio)):
            if not isinstance(array, np.ndarray):
                raise InvalidHistory(f"the {name} of a history are of type {type(array).__name__}")
        if not isinstance(self.fingerprint, str) or not isinstance(self.complete, bool):
            raise InvalidHistory("a history's fingerprint is text, and it is complete or not")
        if self.codes.ndim != 2 or self.codes.shape[0] != STREAMS:
            raise InvalidHistory(f"a history has {STREAMS} rows, not shape {self.codes.shape}")
        if not np.issubdtype(self.codes.dtype, np.integer):
            raise InvalidHistory(f"a history is of whole numbers, not of {self.codes.dtype}")
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidHistory(f"a history has 1 to {MAX_STEPS} steps, not {self.steps}")
        if self.audio.ndim != 2 or self.audio.shape[1] != STEP_SAMPLES:
            raise InvalidHistory(f"the audio of a history has shape {self.audio.shape}")
        if not np.issubdtype(self.audio.dtype, np.floating):
            raise InvalidHistory(f"the audio of a history is of {self.audio.dtype}, not of floats")
        if not np.isfinite(self.audio).all():
            raise InvalidHistory("the audio of a history holds NaN or infinity")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.codes.shape[1]

    def check(self, fingerprint: str, text_tokens: int, audio_tokens: int) -> None:
        """Check that a checkpoint can go on with it.

        Args:
            fingerprint: The checkpoint's.
            text_tokens: Its monologue has tokens below this.
            audio_tokens: Its codebooks have entries below this.

        Raises:
            InvalidHistory: It was held with another checkpoint, or holds what is no token.
        """
        if self.fingerprint != fingerprint:
            raise InvalidHistory("the history was made with another checkpoint")
        _check_range(self.codes, text_tokens, audio_tokens)

    def last(self, steps: int) -> "History":
        """Return the last part of it; a conversation cannot go on from more than a model's context.

        Args:
            steps: How many steps to keep, at least 1.
        """
        codes, audio = self.codes[:, -steps:], self.audio[-min(steps, AUDIO_STEPS) :]
        return History(self.fingerprint, codes, self.complete and self.steps <= steps, audio)

    def to_bytes(self) -> bytes:
        """Return it as bytes: a header in JSON, the codes step by step, and 16-bit audio."""
        header = {
            "fingerprint": self.fingerprint,
            "steps": self.steps,
            "complete": self.complete,
            "audio_steps": len(self.audio),
        }
        encoded = json.dumps(header).encode()
        codes = self.codes.T.astype("<u2").tobytes()
        audio = np.rint(np.clip(self.audio, -1, 1) * 32767).astype("<i2").tobytes()
        return _HEADER.pack(len(encoded)) + encoded + codes + audio

    @classmethod
    def from_bytes(cls, data: bytes) -> "History":
        """Read what :meth:`to_bytes` made.

        Raises:
            InvalidHistory: The bytes are no history.
        """
        try:
            (length,) = _HEADER.unpack_from(data)
            header = json.loads(data[_HEADER.size : _HEADER.size + length])
            steps, audio_steps = header["steps"], header["audio_steps"]
            fingerprint, complete = header["fingerprint"], header["complete"]
        except (struct.error, ValueError, RecursionError, KeyError, TypeError) as e:
            raise InvalidHistory(f"a history whose header cannot be read: {e}") from e
        if not (_is_count(steps) and _is_count(audio_steps) and isinstance(fingerprint, str)):
            raise InvalidHistory("a history whose header does not fit")
        body = data[_HEADER.size + length :]
        codes_bytes, audio_bytes = 2 * STREAMS * steps, 2 * STEP_SAMPLES * audio_steps
        if len(body) != codes_bytes + audio_bytes:
            raise InvalidHistory(f"a history of {len(body)} bytes whose header tells otherwise")
        codes = np.frombuffer(body[:codes_bytes], "<u2").reshape(steps, STREAMS)
        audio = np.frombuffer(body[codes_bytes:], "<i2").reshape(audio_steps, STEP_SAMPLES)
        return cls(
            fingerprint,
            codes.T.astype(np.int32),
            bool(complete),
            audio.astype(np.float32) / np.float32(32767),
        )


def check_tokens(tokens: np.ndarray, text_tokens: int, audio_tokens: int) -> None:
    """Check the tokens of a step that was taken elsewhere.

    Args:
        tokens: Should be whole numbers, shape ``(17,)``.
        text_tokens: The checkpoint's monologue has tokens below this.
        audio_tokens: Its codebooks have entries below this.

    Raises:
        InvalidHistory: They are none.
    """
    if not isinstance(tokens, np.ndarray) or tokens.shape != (STREAMS,):
        raise InvalidHistory(f"a step has {STREAMS} tokens")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise InvalidHistory(f"tokens are whole numbers, not of {tokens.dtype}")
    _check_range(tokens, text_tokens, audio_tokens)


def _check_range(codes: np.ndarray, text_tokens: int, audio_tokens: int) -> None:
    """Check tokens of all streams, the monologue's first."""
    if codes.min() < 0:
        raise InvalidHistory("the history holds numbers below 0")
    if codes[0].max() >= text_tokens or codes[1:].max() >= audio_tokens:
        raise InvalidHistory("the history holds numbers that are no tokens of the checkpoint")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_STEPS


class HistoryKeeper:
    """Keeps the last part of a conversation while it is held."""

    def __init__(self, memory: ResumeKey, history: History | None = None):
        """Initialize before the first step.

        Args:
            memory: The key of the session that holds the conversation.
            history: What that session was restored from.
        """
        self.memory = memory
        codes = () if history is None else history.codes.T
        audio = () if history is None else history.audio
        self._codes: deque[np.ndarray] = deque(codes, maxlen=memory.context_steps)
        self._audio: deque[np.ndarray] = deque(audio, maxlen=AUDIO_STEPS)
        self._pending: deque[np.ndarray] = deque()
        self._complete = len(codes) <= memory.context_steps and (
            history is None or history.complete
        )

    def send(self, pcm: np.ndarray) -> None:
        """Take a step of the user's audio that was sent to the session."""
        self._pending.append(pcm)

    @property
    def unanswered(self) -> list[np.ndarray]:
        """The audio that was sent and has no answer yet."""
        return list(self._pending)

    def take(self, step: Step) -> np.ndarray | None:
        """Take the step that answers the oldest audio without an answer, and return that audio."""
        answered = self._pending.popleft() if self._pending else None
        if answered is not None:
            self._audio.append(answered)
        if step.tokens is None:
            self._audio.clear()  # The first frame: the encoder begins afresh after it.
        else:
            self._complete = self._complete and len(self._codes) < self.memory.context_steps
            self._codes.append(step.tokens)
        return answered

    def take_unanswered(self) -> list[np.ndarray]:
        """Return the audio that was sent and will not be answered, and forget it."""
        unanswered = list(self._pending)
        self._pending.clear()
        return unanswered

    @property
    def audio(self) -> list[np.ndarray]:
        """The user's last audio that was answered."""
        return list(self._audio)

    def history(self) -> History | None:
        """Return what is kept; ``None`` while there is nothing."""
        if not self._codes:
            return None
        return History(
            self.memory.fingerprint,
            np.stack(list(self._codes), axis=1).astype(np.int32),
            self._complete,
            np.array(self._audio, np.float32).reshape(-1, STEP_SAMPLES),
        )
