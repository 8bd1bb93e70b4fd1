"""Sessions in which another voice answers each turn of the user's, as for an LLM.

An answer is due where the model wishes to speak, after the time that an LLM and a TTS take, and
lasts as long as an answer of two sentences.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.turn_end import TurnEnd
from pipecat_duplex.conversation.user_ear import UserEar
from pipecat_duplex.session import STEP_SECS, DuplexBackend, DuplexSession, SessionConfig, Step

LATENCY_SECS = 0.48
"""What an LLM and a TTS take from the end of the user's turn to the first sound."""

ANSWER_SECS = 8.0

_TURN_STEPS = 3  # of the user's voice, which make a turn


def in_steps(secs: float) -> int:
    """Return a time in steps, at least one."""
    return max(1, round(secs / STEP_SECS))


class AnsweringSession:
    """What such sessions share: the user's side, and when an answer is due."""

    def __init__(self, session: DuplexSession, wish_patience_secs: float):
        """Initialize.

        Args:
            session: The model's.
            wish_patience_secs: Silence that ends the user's turn without a wish of the model's.
        """
        self._session = session
        self._turn_end = TurnEnd(in_steps(wish_patience_secs))
        self._ear = UserEar()
        self._user_db: deque[float] = deque()
        self._user_steps = self._due_steps = 0

    def send(self, pcm: np.ndarray) -> int:
        """Give the model the next step of the user's audio."""
        self._user_db.append(level_db(pcm))
        return self._session.send(pcm)

    async def close(self) -> None:
        """End it."""
        await self._session.close()

    def _hear_user(self) -> float:
        """Take the level of the user's audio of the next step, dBFS."""
        user_db = self._user_db.popleft()
        self._ear.observe(user_db)
        return user_db

    def _is_answer_due(self, step: Step, *, agent_speaks: bool) -> bool:
        """Follow a step; return whether an answer begins with it."""
        if agent_speaks:
            self._user_steps = self._user_steps + 1 if self._ear.speaks_now else 0
            return False
        if self._ear.speaks_now:
            self._user_steps += 1
            self._due_steps = 0
        is_turn = self._user_steps >= _TURN_STEPS
        if is_turn and self._turn_end.step(user_speaking=self._ear.speaks_now, wish=step.wish):
            self._user_steps, self._due_steps = 0, in_steps(LATENCY_SECS)
        elif self._due_steps:
            self._due_steps -= 1
            return not self._due_steps
        return False


class AnsweringBackend:
    """Opens sessions whose model keeps its own words back."""

    def __init__(self, backend: DuplexBackend, begin: Callable[[DuplexSession], AnsweringSession]):
        """Initialize.

        Args:
            backend: The model.
            begin: Makes such a session of the model's.
        """
        self._backend = backend
        self._begin = begin

    async def open(self, config: SessionConfig) -> AnsweringSession:
        """Begin a conversation."""
        session = await self._backend.open(config)
        await session.hold(True)
        return self._begin(session)

    async def close(self) -> None:
        """Close the model."""
        await self._backend.close()
