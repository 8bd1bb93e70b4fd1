"""Another voice speaks for the model, as with a TTS behind the service: what the user hears then.

An answer is begun where the model wishes to speak, after the time that an LLM and a TTS take, and
lasts as long as an answer of two sentences. It is a hum. The model's decisions are the service's.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace

import numpy as np
from pipecat.frames.frames import Frame

from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.turn_end import TurnEnd
from pipecat_duplex.conversation.turns import TurnSettings
from pipecat_duplex.conversation.user_ear import UserEar
from pipecat_duplex.service.foreign_voice import ForeignVoice
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    STEP_SECS,
    DuplexBackend,
    DuplexSession,
    SessionConfig,
    Step,
)

LATENCY_SECS = 0.48
"""What an LLM and a TTS take from the end of the user's turn to the first sound."""

ANSWER_SECS = 8.0
WORD_STEPS = 4

_HUM = (0.1 * np.sin(2 * np.pi * 200 * np.arange(STEP_SAMPLES) / SAMPLE_RATE_HZ)).astype(np.float32)
TURN_STEPS = 3  # of the user's voice, which make a turn


class MimedBackend:
    """Opens sessions in which another voice speaks for the model."""

    def __init__(self, backend: DuplexBackend, turns: TurnSettings | None = None):
        """Initialize.

        Args:
            backend: The model.
            turns: Times of the turns.
        """
        self._backend = backend
        self._turns = turns or TurnSettings()

    async def open(self, config: SessionConfig) -> "MimedSession":
        """Begin a conversation."""
        session = await self._backend.open(config)
        await session.hold(True)
        return MimedSession(session, self._turns)

    async def close(self) -> None:
        """Close the model."""
        await self._backend.close()


class MimedSession:
    """A session whose steps hold what the user hears: the other voice."""

    def __init__(self, session: DuplexSession, turns: TurnSettings):
        """Initialize.

        Args:
            session: The model's.
            turns: Times of the turns.
        """
        self._session = session
        self._voice = ForeignVoice(_NoPipeline(), in_steps(turns.mime_stop_secs))
        self._voice.is_on = True
        self._voice.begin_session(session)
        self._turn_end = TurnEnd(in_steps(turns.wish_patience_secs))
        self._ear = UserEar()
        self._user_db: deque[float] = deque()
        self._user_steps = 0
        self._due_steps = self._left_steps = 0

    def send(self, pcm: np.ndarray) -> int:
        """Give the model the next step of the user's audio."""
        self._user_db.append(level_db(pcm))
        return self._session.send(pcm)

    async def steps(self) -> AsyncIterator[Step]:
        """What the user hears, step by step."""
        async for step in self._session.steps():
            user_db = self._user_db.popleft()
            self._ear.observe(user_db)
            if await self._voice.step(step, user_db, level_db(step.pcm)):
                self._left_steps = 0
                await self._voice.interrupted()
            await self._follow(step)
            is_word = self._left_steps > 0 and self._left_steps % WORD_STEPS == 0
            yield replace(
                step,
                pcm=_HUM if self._left_steps else np.zeros_like(_HUM),
                text_piece="▁hm" if is_word else None,
            )

    async def close(self) -> None:
        """End it."""
        await self._session.close()

    async def _follow(self, step: Step) -> None:
        if self._left_steps:
            self._left_steps -= 1
            self._user_steps = self._user_steps + 1 if self._ear.speaks_now else 0
            if not self._left_steps:
                await self._voice.stopped()
            return
        if self._ear.speaks_now:
            self._user_steps += 1
            self._due_steps = 0
        is_turn = self._user_steps >= TURN_STEPS
        if is_turn and self._turn_end.step(user_speaking=self._ear.speaks_now, wish=step.wish):
            self._user_steps, self._due_steps = 0, in_steps(LATENCY_SECS)
        elif self._due_steps:
            self._due_steps -= 1
            if not self._due_steps:
                self._left_steps = in_steps(ANSWER_SECS)
                await self._voice.started()


class _NoPipeline:
    async def push_frame(self, frame: Frame) -> None:
        pass

    async def push_error(self, error_msg: str, exception: Exception | None = None) -> None:
        raise RuntimeError(error_msg) from exception

    def create_task(self, coroutine: Coroutine, name: str | None = None) -> asyncio.Task:
        return asyncio.create_task(coroutine, name=name)


def in_steps(secs: float) -> int:
    """Return a time in steps, at least one."""
    return max(1, round(secs / STEP_SECS))
