"""Another voice speaks for the model, as with a TTS behind the service: what the user hears then.

The voice is a hum. The model's decisions are the service's.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace

import numpy as np
from pipecat.frames.frames import Frame

from benchmarks.duplex.answering import (
    ANSWER_SECS,
    AnsweringBackend,
    AnsweringSession,
    in_steps,
)
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.turns import TurnSettings
from pipecat_duplex.service.foreign_voice import ForeignVoice
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    DuplexBackend,
    DuplexSession,
    Step,
)

WORD_STEPS = 4

_HUM = (0.1 * np.sin(2 * np.pi * 200 * np.arange(STEP_SAMPLES) / SAMPLE_RATE_HZ)).astype(np.float32)


class MimedBackend(AnsweringBackend):
    """Opens sessions in which another voice speaks for the model."""

    def __init__(self, backend: DuplexBackend, turns: TurnSettings | None = None):
        """Initialize.

        Args:
            backend: The model.
            turns: Times of the turns.
        """
        times = turns or TurnSettings()
        super().__init__(backend, lambda session: MimedSession(session, times))


class MimedSession(AnsweringSession):
    """A session whose steps hold what the user hears: the other voice."""

    def __init__(self, session: DuplexSession, turns: TurnSettings):
        """Initialize.

        Args:
            session: The model's.
            turns: Times of the turns.
        """
        super().__init__(session, turns.wish_patience_secs)
        self._voice = ForeignVoice(_NoPipeline(), in_steps(turns.mime_stop_secs))
        self._voice.is_on = True
        self._voice.begin_session(session)
        self._left_steps = 0

    async def steps(self) -> AsyncIterator[Step]:
        """What the user hears, step by step."""
        async for step in self._session.steps():
            if await self._voice.step(step, self._hear_user(), level_db(step.pcm)):
                self._left_steps = 0
                await self._voice.interrupted()
            await self._follow(step)
            is_word = self._left_steps > 0 and self._left_steps % WORD_STEPS == 0
            yield replace(
                step,
                pcm=_HUM if self._left_steps else np.zeros_like(_HUM),
                text_piece="▁hm" if is_word else None,
            )

    async def _follow(self, step: Step) -> None:
        if self._is_answer_due(step, agent_speaks=self._left_steps > 0):
            self._left_steps = in_steps(ANSWER_SECS)
            await self._voice.started()
        elif self._left_steps:
            self._left_steps -= 1
            if not self._left_steps:
                await self._voice.stopped()


class _NoPipeline:
    async def push_frame(self, frame: Frame) -> None:
        pass

    async def push_error(self, error_msg: str, exception: Exception | None = None) -> None:
        raise RuntimeError(error_msg) from exception

    def create_task(self, coroutine: Coroutine, name: str | None = None) -> asyncio.Task:
        return asyncio.create_task(coroutine, name=name)
