"""Whether the user has said something, and waits for an answer.

The model decides when a turn is over. One that is small, or that hears a voice unlike those of its
training, sometimes waits on for ever. Then it is asked to answer.
"""

from pipecat_duplex.conversation.barge_in import CALM, Overlap

VERY_SURE = 0.985
"""From this probability on a step is of a voice. Music often reaches 0.9."""

SAID_STEPS = 5
"""So many such steps (0.4 s) are something to be answered."""

PATIENCE_STEPS = 20
"""Silence after which the user is done (1.6 s). Pauses inside a sentence are shorter."""

ANSWERED_STEPS = 12
"""An agent that speaks on for so long (0.96 s) after the user's voice has answered it."""


class UserSaid:
    """Follows, for one conversation, what the user has said since the agent last began to speak."""

    def __init__(self):
        """Initialize; nobody has spoken."""
        self._said_steps = self._silent_steps = 0
        self._agent_spoke = self._was_told = False

    def step(self, overlap: Overlap, *, agent_speaks: bool) -> bool:
        """Observe a step.

        Args:
            overlap: What is heard of the user.
            agent_speaks: Whether the agent speaks, or is about to.

        Returns:
            Whether an answer is due: the user has said something and waits. It is told once.
        """
        if agent_speaks and not self._agent_spoke:
            self._said_steps, self._was_told = 0, False
        self._agent_spoke = agent_speaks
        self._said_steps += overlap.floor >= VERY_SURE
        self._silent_steps = self._silent_steps + 1 if overlap.floor < CALM else 0
        if agent_speaks:
            if self._silent_steps >= ANSWERED_STEPS:
                self._said_steps = 0
            return False
        waits = self._said_steps >= SAID_STEPS and self._silent_steps >= PATIENCE_STEPS
        if self._was_told or not waits:
            return False
        self._was_told = True
        return True
