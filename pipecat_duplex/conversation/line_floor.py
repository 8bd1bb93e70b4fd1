"""How loud a line is when nobody speaks."""

from collections import deque

from pipecat_duplex.conversation.clock import QUIET_LEVEL_DB

FLOOR_STEPS = 64
"""Steps among which the quietest shows the level of the line: 5 s."""

ABOVE_DB = 3.0
"""How far above that level a step is still quiet."""

LOUDEST_DB = -35.0
"""No line is louder than this while nobody speaks."""


class LineFloor:
    """Tells the steps of the user's audio in which nobody speaks, also where it is never silent."""

    def __init__(self):
        """Initialize; nothing was heard yet."""
        self._levels_db: deque[float] = deque(maxlen=FLOOR_STEPS)

    def is_quiet(self, level_db: float) -> bool:
        """Take the level of the next step, dBFS; tell whether nobody speaks in it."""
        self._levels_db.append(level_db)
        floor_db = min(self._levels_db) + ABOVE_DB
        return level_db < max(QUIET_LEVEL_DB, min(floor_db, LOUDEST_DB))
