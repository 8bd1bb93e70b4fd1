"""One step of a conversation: 80 ms of audio and one token of the monologue."""

from dataclasses import dataclass

import numpy as np

from pipecat_duplex.session.errors import InvalidAudio

SAMPLE_RATE_HZ = 24_000
"""The sample rate of every session, in both directions."""

STEP_SAMPLES = 1_920
"""Samples in one step: 80 ms at 24 kHz, the model's 12.5 Hz."""

STEP_SECS = STEP_SAMPLES / SAMPLE_RATE_HZ
"""Length of one step in seconds."""

TEXT_PADDING = 3
"""Text token of a step in which the agent begins or continues no word."""

TEXT_END_OF_PADDING = 0
"""Text token of the step just before a word."""

TEXT_VOICED = 1
"""Text token of a word that a TTS speaks: none of the model's. The piece tells which word it is."""

WORD_START = "▁"
"""Begins a SentencePiece piece that starts a word."""


def check_step_audio(pcm: np.ndarray) -> None:
    """Raise if this is no step of audio.

    Args:
        pcm: Should be float32, shape ``(STEP_SAMPLES,)``, and finite.

    Raises:
        InvalidAudio: It is not.
    """
    if not isinstance(pcm, np.ndarray):
        raise InvalidAudio(f"audio must be a numpy array, not {type(pcm).__name__}")
    if pcm.dtype != np.float32:
        raise InvalidAudio(f"audio must be float32, not {pcm.dtype}")
    if pcm.shape != (STEP_SAMPLES,):
        raise InvalidAudio(f"audio must have shape ({STEP_SAMPLES},), not {pcm.shape}")
    if not np.isfinite(pcm).all():
        raise InvalidAudio("audio must be finite, but holds NaN or infinity")


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Where the time of one step went.

    Parameters:
        waited_secs: From ``send`` to the start of the computation.
        compute_secs: The computation itself, for the whole batch.
    """

    waited_secs: float
    compute_secs: float


@dataclass(frozen=True, slots=True)
class Said:
    """What became of words that were put into the agent's mouth.

    Parameters:
        utterance_id: The number that ``say`` gave.
        spoken: The words that were spoken.
        unspoken: The words that were dropped: the user barged in, or others cut in. Empty if all
            was said.
        unsayable: Words, as they were written, that the model does not have: they were left out,
            and the others were said.
    """

    utterance_id: int
    spoken: str
    unspoken: str
    unsayable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CanSay:
    """Whether a model can say a text; true if it can.

    Parameters:
        lacks: The words that it does not have.
        reason: Why it cannot, in words; empty if it can.
    """

    lacks: tuple[str, ...] = ()
    reason: str = ""

    def __bool__(self) -> bool:
        """Whether it can say the whole text."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class HeardWord:
    """A word of the user's, as a recogniser beside the model heard it.

    Parameters:
        text: The word, with its punctuation.
        start_step: The step of the user's audio in which it begins. Below 0 if that was before the
            session's first step, in the audio of its history.
        end_step: The first step after its last piece. The voice may go on a little longer.
    """

    text: str
    start_step: int
    end_step: int

    def moved(self, steps: int) -> "HeardWord":
        """Return the word in a count of steps that is ahead by so many."""
        return HeardWord(self.text, self.start_step + steps, self.end_step + steps)


@dataclass(frozen=True, slots=True)
class Step:
    """The agent's side of one step.

    Parameters:
        index: The step of the user's audio that this one answers, counted from 0. The agent's
            audio of step ``i`` can be heard from second ``(i + 1) * STEP_SECS`` on.
        pcm: Agent audio, float32 in [-1, 1], shape ``(STEP_SAMPLES,)``, 24 kHz. Silent in the
            first step, when the acoustic delay has not passed yet.
        text_token: Monologue token of the step; :data:`TEXT_PADDING` when there is none.
        text_piece: The token's SentencePiece piece (``▁`` starts a word, ``<0xE2>`` is one byte),
            or ``None`` for padding and control tokens.
        timing: Where the time went.
        utterance_id: The utterance of ``say`` that the piece belongs to, or ``None``.
        said: Utterances of ``say`` that came to their end.
        tokens: All of the step, int32, shape ``(17,)``: monologue, agent's codebooks, user's. For a
            :class:`~pipecat_duplex.session.history.HistoryKeeper`. ``None`` where not known.
        wish: Whether the model would have begun words of its own here, which ``hold`` keeps back.
        heard: Words of the user's that were recognised since the step before, of earlier audio.
            Empty where nothing recognises them: :attr:`DuplexSession.hearing_delay_steps`.
        unheeded: Whether a sound of the user's was kept from the model: it was no more than an
            "uh huh" or a cough. Where the agent pauses then, it does not yield.
    """

    index: int
    pcm: np.ndarray
    text_token: int
    text_piece: str | None
    timing: StepTiming
    utterance_id: int | None = None
    said: tuple[Said, ...] = ()
    tokens: np.ndarray | None = None
    wish: bool = False
    heard: tuple[HeardWord, ...] = ()
    unheeded: bool = False
