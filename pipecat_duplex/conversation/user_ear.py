"""Whether the user speaks, by level alone: sooner than a voice detector is sure."""

from collections import deque

USER_LEVEL_DB = -42.0
"""User audio below this level is never speech."""

USER_ABOVE_FLOOR_DB = 12.0
"""User audio is speech so far above the quietest of the last steps."""

USER_FLOOR_STEPS = 40
USER_RECENT_STEPS = 12
"""Who spoke within so many steps (0.96 s) still counts as speaking over the agent."""


class UserEar:
    """Tells from levels alone whether the user has begun to speak, however noisy the line."""

    def __init__(self):
        """Initialize with nobody speaking."""
        self._levels_db: deque[float] = deque(maxlen=USER_FLOOR_STEPS)
        self._quiet_steps = USER_RECENT_STEPS

    def observe(self, level_db: float) -> None:
        """Take the level of a step of the user's audio, dBFS."""
        floor_db = min(self._levels_db, default=level_db)
        self._levels_db.append(level_db)
        speaks = level_db >= max(USER_LEVEL_DB, floor_db + USER_ABOVE_FLOOR_DB)
        self._quiet_steps = 0 if speaks else self._quiet_steps + 1

    @property
    def quiet_steps(self) -> int:
        """For how many steps the user has not spoken."""
        return self._quiet_steps

    @property
    def hears_user(self) -> bool:
        """Whether the user speaks, or did a moment ago."""
        return self._quiet_steps < USER_RECENT_STEPS

    @property
    def speaks_now(self) -> bool:
        """Whether the user spoke in the last step."""
        return self._quiet_steps == 0
