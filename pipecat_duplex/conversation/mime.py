"""When a model that only believes that it speaks would give up the floor.

A foreign voice (a TTS) speaks for the agent. While it sounds, the model tells a story of its own
that nobody hears: it *mimes*, and hears the user meanwhile. If the user speaks over the voice and
the mime falls silent, the model has yielded. Without a user, its pauses mean nothing.
"""

from pipecat_duplex.conversation.user_ear import UserEar

STORY = (
    "once there was a small cat who wanted to see the sea she walked for three days "
    "and at last she saw the water then she went home and slept"
)
MIMED = " ".join([STORY] * 4)
"""What the model tells while the voice sounds: 40 s. The embedded model was trained on it."""

SOUND_LEVEL_DB = -50.0
"""Audio of the model above this level (dBFS, RMS of a step) is speech."""

LEAD_STEPS = 6
"""Steps (0.48 s) within which the mime has begun to sound; then silence counts."""

REACTION_STEPS = 5
"""Where the story pauses as the user begins, silence counts once the model can have heard them."""

HEARD_STEPS = 3
"""No model yields to less voice (0.24 s): where it heard no more, the story pauses by itself."""


class Mime:
    """Watches the mime and the user, a step at a time."""

    def __init__(self, yield_steps: int):
        """Initialize with a silent voice.

        Args:
            yield_steps: Silence of the mime that is a yield.
        """
        self._yield_steps = yield_steps
        self._ear = UserEar()
        self._steps: int | None = None
        self._quiet_steps = 0
        self._over_steps = 0
        self._heard_steps = 0
        self._since_heard_steps = 0

    @property
    def is_on(self) -> bool:
        """Whether the voice sounds, and the floor has not been given up."""
        return self._steps is not None

    @property
    def over_steps(self) -> int:
        """Steps since the user began to speak over the voice, with this one; 0 if nobody did."""
        return self._over_steps

    def begin(self) -> None:
        """The voice begins to sound."""
        self._steps = self._quiet_steps = 0
        self._forget_user()

    def end(self) -> None:
        """The voice has stopped, or gives up."""
        self._steps = None

    def step(self, *, agent_level_db: float, user_level_db: float, unheeded: bool = False) -> bool:
        """Observe a step.

        Args:
            agent_level_db: Level of the model's own audio, which nobody hears, dBFS.
            user_level_db: Level of the user's audio, dBFS.
            unheeded: Whether the user was kept from the model: its silence is no answer to them.

        Returns:
            Whether the model gives up the floor in this step.
        """
        self._ear.observe(user_level_db)
        if self._steps is None:
            return False
        self._steps += 1
        self._hear_user(unheeded)
        sounds = agent_level_db >= SOUND_LEVEL_DB
        if sounds:
            self._steps = max(self._steps, LEAD_STEPS)
        self._quiet_steps = 0 if sounds or self._steps < LEAD_STEPS else self._quiet_steps + 1
        if self._heard_steps < HEARD_STEPS:
            return False
        quiet_steps = self._quiet_steps
        if quiet_steps >= self._since_heard_steps:  # A pause, which a yield may go on.
            quiet_steps = self._over_steps - REACTION_STEPS
        return quiet_steps >= self._yield_steps

    def _hear_user(self, unheeded: bool) -> None:
        if not (self._ear.hears_user if self._over_steps else self._ear.speaks_now):
            self._forget_user()
            return
        self._over_steps += 1
        self._heard_steps += self._ear.speaks_now and not unheeded
        self._since_heard_steps += self._heard_steps > 0

    def _forget_user(self) -> None:
        self._over_steps = self._heard_steps = self._since_heard_steps = 0
