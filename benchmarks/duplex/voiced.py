"""A TTS in the engine speaks for the model: what the user hears then.

An answer as long as two sentences is given where the model wishes to speak, after the time that an
LLM takes.
"""

from collections.abc import AsyncIterator, Sequence

import numpy as np

from benchmarks.duplex.mimed import ANSWER_SECS, LATENCY_SECS, TURN_STEPS, in_steps
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.turn_end import TurnEnd
from pipecat_duplex.conversation.turns import TurnSettings
from pipecat_duplex.conversation.user_ear import UserEar
from pipecat_duplex.engine.voice import Sound
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    DuplexBackend,
    DuplexSession,
    SessionConfig,
    Step,
)

WORD_SECS = 0.32

_ANSWER = " ".join(["hm"] * round(ANSWER_SECS / WORD_SECS))


class Rush:
    """A TTS that rushes without a pause, takes no time and needs no package.

    A voice's own pauses would count as yields. A tone would be found in the user's voice by the
    echo suppressor, which looks for the agent's sound there.
    """

    def lacks(self, word: str) -> bool:
        """It has one sound for all words."""
        return False

    def speak(self, words: Sequence[str]) -> Sound:
        """Rush as long as the words would take, louder and softer four times a second."""
        samples = round(WORD_SECS * SAMPLE_RATE_HZ) * len(words)
        noise = np.random.default_rng(0).standard_normal(samples)
        swell = 1.1 - np.cos(2 * np.pi * 4 * np.arange(samples) / SAMPLE_RATE_HZ)
        starts = tuple(number * WORD_SECS for number in range(len(words)))
        return Sound((0.05 * noise * swell).astype(np.float32), starts)


class VoicedBackend:
    """Opens sessions whose agent answers with given words only."""

    def __init__(self, backend: DuplexBackend):
        """Initialize.

        Args:
            backend: An engine with a TTS.
        """
        self._backend = backend

    async def open(self, config: SessionConfig) -> "VoicedSession":
        """Begin a conversation."""
        session = await self._backend.open(config)
        await session.hold(True)
        return VoicedSession(session)

    async def close(self) -> None:
        """Close the model."""
        await self._backend.close()


class VoicedSession:
    """A session in which each turn of the user's gets an answer of the same length."""

    def __init__(self, session: DuplexSession):
        """Initialize.

        Args:
            session: The engine's.
        """
        self._session = session
        self._turn_end = TurnEnd(in_steps(TurnSettings().wish_patience_secs))
        self._ear = UserEar()
        self._user_db: list[float] = []
        self._user_steps = self._due_steps = 0
        self._speaks = False

    def send(self, pcm: np.ndarray) -> int:
        """Give the model the next step of the user's audio."""
        self._user_db.append(level_db(pcm))
        return self._session.send(pcm)

    async def steps(self) -> AsyncIterator[Step]:
        """What the user hears, step by step."""
        async for step in self._session.steps():
            self._ear.observe(self._user_db.pop(0))
            await self._follow(step)
            yield step

    async def close(self) -> None:
        """End it."""
        await self._session.close()

    async def _follow(self, step: Step) -> None:
        if step.said:
            self._speaks = False
        if self._speaks:
            self._user_steps = self._user_steps + 1 if self._ear.speaks_now else 0
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
                self._speaks = True
                await self._session.say(_ANSWER)
