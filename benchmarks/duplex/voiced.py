"""A TTS in the engine speaks for the model: what the user hears then."""

from collections.abc import AsyncIterator, Sequence

import numpy as np

from benchmarks.duplex.answering import ANSWER_SECS, AnsweringBackend, AnsweringSession
from pipecat_duplex.conversation.turns import TurnSettings
from pipecat_duplex.engine.voice import Sound
from pipecat_duplex.session import SAMPLE_RATE_HZ, DuplexBackend, DuplexSession, Step

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


class VoicedBackend(AnsweringBackend):
    """Opens sessions whose agent answers with given words only."""

    def __init__(self, backend: DuplexBackend):
        """Initialize.

        Args:
            backend: An engine with a TTS.
        """
        super().__init__(backend, VoicedSession)


class VoicedSession(AnsweringSession):
    """A session in which each turn of the user's gets an answer of the same length."""

    def __init__(self, session: DuplexSession):
        """Initialize.

        Args:
            session: The engine's.
        """
        super().__init__(session, TurnSettings().wish_patience_secs)
        self._speaks = False

    async def steps(self) -> AsyncIterator[Step]:
        """What the user hears, step by step."""
        async for step in self._session.steps():
            self._hear_user()
            if step.said:
                self._speaks = False
            if self._is_answer_due(step, agent_speaks=self._speaks):
                self._speaks = True
                await self._session.say(_ANSWER)
            yield step
