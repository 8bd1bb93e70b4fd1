"""Time: the user's audio drives the model, but a conversation does not stop when packets do.

Both clocks count on one time line, in steps. Step ``i`` of the user's audio is *due* when its last
sample can have been spoken, ``(i + 1) * STEP_SECS`` after the origin. Neither clock reads the time:
the caller passes ``now_secs``, of any steady clock.
"""

import math
from collections import deque
from dataclasses import dataclass

from pipecat_duplex.session import STEP_SECS

QUIET_LEVEL_DB = -50.0
"""A step below this level (dBFS, RMS) may be left out to make up time."""


@dataclass(frozen=True)
class ClockSettings:
    """How much lateness is borne, and how it is made up.

    Parameters:
        patience_secs: Audio this late is replaced by silence, so that the agent goes on.
            ``math.inf`` never fills.
        slack_secs: Audio may run this far ahead of the time line (a burst of late packets) before
            it is dropped: its place has been taken by silence.
        max_fill_secs: A longer hole (a machine that slept) is not filled but skipped.
        tolerance_secs: Lag of the agent's audio that is left alone.
        max_lag_secs: Agent audio with more lag than this is too old to be heard.
        settle_secs: After a stall, the lag is back within ``tolerance_secs`` this long after it
            began to be made up.
    """

    patience_secs: float = 0.08
    slack_secs: float = 0.24
    max_fill_secs: float = 1.0
    tolerance_secs: float = 0.08
    max_lag_secs: float = 0.25
    settle_secs: float = 1.5


class InputClock:
    """Decides which of the user's steps the model hears, and when silence takes their place."""

    def __init__(self, settings: ClockSettings | None = None):
        """Initialize a clock that has not started.

        Args:
            settings: How much lateness is borne.
        """
        self._settings = settings or ClockSettings()
        self._origin_secs: float | None = None
        self._steps = 0
        self.filled_steps = 0
        self.dropped_steps = 0

    @property
    def started(self) -> bool:
        """Whether the time line has begun."""
        return self._origin_secs is not None

    def start(self, now_secs: float) -> None:
        """Begin the time line; later calls change nothing.

        Args:
            now_secs: The time at which step 0 begins.
        """
        if self._origin_secs is None:
            self._origin_secs = now_secs

    def due_secs(self, index: int) -> float:
        """Return when a step's last sample can have been spoken.

        Args:
            index: The step.

        Raises:
            RuntimeError: The clock has not started.
        """
        if self._origin_secs is None:
            raise RuntimeError("the clock has not started")
        return self._origin_secs + (index + 1) * STEP_SECS

    def admit(self, now_secs: float, *, quiet: bool) -> bool:
        """Decide on the next step of real audio.

        Args:
            now_secs: The time.
            quiet: Whether the step is silence, which can be left out unheard.

        Returns:
            Whether the model is to hear it. If so, it has its place on the time line.
        """
        self.start(now_secs - STEP_SECS)
        ahead_secs = self.due_secs(self._steps) - now_secs
        # A little is allowed for: a step ahead of time by less than itself was merely early.
        if ahead_secs > self._settings.slack_secs or (quiet and ahead_secs >= STEP_SECS):
            self.dropped_steps += 1
            return False
        self._steps += 1
        return True

    def fill(self, now_secs: float) -> int:
        """Return how many steps of silence are to be fed now, and give them their places.

        Args:
            now_secs: The time.
        """
        wait_secs = self.secs_to_fill(now_secs)
        if wait_secs is None or wait_secs > 0:
            return 0
        overdue_secs = -wait_secs
        if overdue_secs > self._settings.max_fill_secs:
            assert self._origin_secs is not None
            self._origin_secs += overdue_secs
            overdue_secs = 0.0
        steps = 1 + math.floor(overdue_secs / STEP_SECS)
        self._steps += steps
        self.filled_steps += steps
        return steps

    def secs_to_fill(self, now_secs: float) -> float | None:
        """Return the time until silence is needed, or ``None`` if it never is.

        Args:
            now_secs: The time.
        """
        if self._origin_secs is None or math.isinf(self._settings.patience_secs):
            return None
        return self.due_secs(self._steps) + self._settings.patience_secs - now_secs


class OutputClock:
    """Decides which of the agent's steps are heard, so that a stall never becomes a delay.

    The lag of a step is its delay beyond the least delay of the last ten seconds. What has been
    pushed plays in real time, so a burst of steps makes a queue; its length counts as lag too.
    Silence that is late is left out at once. Speech is left out when it is too old, and the age
    allowed shrinks until the old delay is back.
    """

    def __init__(self, settings: ClockSettings | None = None):
        """Initialize the clock.

        Args:
            settings: How much lateness is borne.
        """
        self._settings = settings or ClockSettings()
        self._delays_secs: deque[float] = deque(maxlen=round(10 / STEP_SECS))
        self._played_until_secs = -math.inf
        self._late_since_secs: float | None = None
        self.lag_secs = 0.0
        self.dropped_steps = 0

    def observe(self, now_secs: float, due_secs: float) -> None:
        """Note that a step arrived.

        Args:
            now_secs: The time.
            due_secs: When the step of user audio that it answers was due.
        """
        self._delays_secs.append(now_secs - due_secs)
        heard_secs = max(now_secs, self._played_until_secs)
        self.lag_secs = heard_secs - due_secs - min(self._delays_secs)
        if self.lag_secs <= self._settings.tolerance_secs:
            self._late_since_secs = None
        elif self._late_since_secs is None:
            self._late_since_secs = now_secs

    def admit(self, now_secs: float, *, quiet: bool) -> bool:
        """Decide whether the step just observed is heard.

        Args:
            now_secs: The time.
            quiet: Whether the step is silence.

        Returns:
            Whether to push it.
        """
        if self.lag_secs > self._allowed_lag_secs(now_secs, quiet=quiet):
            self.dropped_steps += 1
            return False
        self._played_until_secs = max(now_secs, self._played_until_secs) + STEP_SECS
        return True

    def flush(self) -> None:
        """Note that everything pushed and not yet played was thrown away."""
        self._played_until_secs = -math.inf

    def _allowed_lag_secs(self, now_secs: float, *, quiet: bool) -> float:
        settings = self._settings
        if quiet or self._late_since_secs is None:
            return settings.tolerance_secs
        passed = (now_secs - self._late_since_secs) / settings.settle_secs
        return max(settings.tolerance_secs, settings.max_lag_secs * (1 - passed))
