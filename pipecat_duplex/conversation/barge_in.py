"""What the user does while the agent speaks, and whether they have talked over it."""

from typing import NamedTuple

CALM = 0.3
"""Below this probability nobody wants the floor, so that somebody may begin to."""

SURE = 0.9
"""From this probability on somebody wants it,"""

SURE_STEPS = 2
"""if it lasts for so many steps (0.16 s): a knock is like a voice for less."""

OVER_STEPS = 3
"""The model itself is waited for so long (0.24 s): it answers best where it yields by itself."""

HEARD = 0.7
"""From this probability on the model hears the user while it speaks."""


class Overlap(NamedTuple):
    """What is heard of the user, as probabilities.

    Parameters:
        nobody: Nobody speaks; there may be a sound that is no speech.
        backchannel: Somebody says "uh huh", or the like.
        floor: Somebody wants the floor.
    """

    nobody: float
    backchannel: float
    floor: float


class BargeIn:
    """Decides, for one conversation, when the user has talked over the agent.

    Who still speaks as the agent begins has not: that is the end of a turn which the agent took.
    """

    def __init__(self):
        """Initialize; nobody speaks."""
        self._can_begin = False
        self._over_steps = self._sure_steps = 0

    def step(self, overlap: Overlap | None) -> bool:
        """Observe a step.

        Args:
            overlap: What is heard of the user; ``None`` while the agent does not speak.

        Returns:
            Whether the agent has to give up the floor.
        """
        if overlap is None or overlap.floor < CALM:
            self._can_begin = overlap is not None
            self._over_steps = self._sure_steps = 0
            return False
        self._over_steps += 1
        self._sure_steps = self._sure_steps + 1 if overlap.floor >= SURE else 0
        is_sure = self._sure_steps >= SURE_STEPS and self._over_steps >= OVER_STEPS
        if not is_sure or not self._can_begin:
            return False
        self._can_begin = False
        return True
