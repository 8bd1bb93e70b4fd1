"""The user's words from a recogniser beside the model, as an STT service would give them."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from loguru import logger
from pipecat.utils.time import time_now_iso8601

from pipecat_duplex.conversation.heard_speech import HeardSpeech
from pipecat_duplex.service.frames import HeardTranscriptionFrame
from pipecat_duplex.service.user_words import TranscriptDesk
from pipecat_duplex.session import STEP_SECS, DuplexSession, Step

PATIENCE_SECS = 0.6
"""A voice whose words are not known so long after the recogniser's delay had none."""


class HeardTranscripts:
    """Makes a transcript of each stretch of the user's voice with words in it."""

    def __init__(
        self, desk: TranscriptDesk, give: Callable[[HeardTranscriptionFrame], Awaitable[None]]
    ):
        """Initialize.

        Args:
            desk: Knows of the user's voice.
            give: Called with each transcript.
        """
        self._desk = desk
        self._give = give
        self._speech: HeardSpeech | None = None
        self._stt_told = False

    def begin_session(self) -> None:
        """A session begins."""
        self._speech = None

    async def step(self, step: Step, session: DuplexSession | None) -> None:
        """Follow a step, whose words are in steps of the user's audio."""
        delay_steps = getattr(session, "hearing_delay_steps", None)
        if delay_steps is None:
            return
        if self._desk.has_stt:
            self._tell_of_stt()
            return
        if self._speech is None:
            self._speech = HeardSpeech(delay_steps * STEP_SECS)
            self._desk.expect_words(delay_steps * STEP_SECS + PATIENCE_SECS)
        for said in self._speech.step(step.heard, self._desk.voice):
            frame = HeardTranscriptionFrame(
                said.text,
                "",
                time_now_iso8601(),
                finalized=True,
                start_secs=said.start_secs,
                end_secs=said.end_secs,
            )
            await self._give(frame)

    def _tell_of_stt(self) -> None:
        if not self._stt_told:
            self._stt_told = True
            logger.info(
                "The user's words come from the STT upstream; those of the recogniser beside the "
                "model are left alone"
            )


def shift_words(step: Step, steps: int) -> Step:
    """Return a step that is known by another index, with its words moved by as much."""
    heard = tuple(word.moved(steps) for word in step.heard)
    return replace(step, index=step.index + steps, heard=heard)
