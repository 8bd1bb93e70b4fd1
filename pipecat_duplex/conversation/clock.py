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
        max_lag_secs: Agent audio that comes later than this is too old to be heard.
        settle_secs: After a stall, no more than one step waits to be played this long after the
            lag began.
    """

    patience_secs: float = 0.08
    slack_secs: float = 0.24
    max_fill_secs: float = 1.0
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

    @property
    def due_secs(self) -> float:
        """When the last sample of the step admitted or filled last can have been spoken."""
        return self._end_secs(self._steps - 1)

    def admit(self, now_secs: float, *, quiet: bool) -> bool:
        """Decide on the next step of real audio.

        Args:
            now_secs: The time.
            quiet: Whether the step is silence, which can be left out unheard.

        Returns:
            Whether the model is to hear it. If so, it has its place on the time line.
        """
        self.start(now_secs - STEP_SECS)
        ahead_secs = self._end_secs(self._steps) - now_secs
        # A little is allowed for: a step ahead of time by less than itself was merely early.
        if ahead_secs > self._settings.slack_secs or (quiet and ahead_secs >= STEP_SECS):
            self.dropped_steps += 1
            return False
        self._steps += 1
        return True

    def fill(self, now_secs: float) -> bool:
        """Decide whether a step of silence is to be fed now, and give it its place if so.

        Args:
            now_secs: The time.
        """
        wait_secs = self.secs_to_fill(now_secs)
        if wait_secs is None or wait_secs > 0:
            return False
        if -wait_secs > self._settings.max_fill_secs:
            assert self._origin_secs is not None
            self._origin_secs -= wait_secs
        self._steps += 1
        self.filled_steps += 1
        return True

    def secs_to_fill(self, now_secs: float) -> float | None:
        """Return the time until silence is needed, or ``None`` if it never is.

        Args:
            now_secs: The time.
        """
        if self._origin_secs is None or math.isinf(self._settings.patience_secs):
            return None
        return self._end_secs(self._steps) + self._settings.patience_secs - now_secs

    def _end_secs(self, step: int) -> float:
        if self._origin_secs is None:
            raise RuntimeError("the clock has not started")
        return self._origin_secs + (step + 1) * STEP_SECS


class OutputClock:
    """Decides which of the agent's steps are heard, so that a stall never becomes a delay.

    The lag of a step is its delay beyond the least of the last ten seconds: how late it came, and
    how long it has to wait for what was pushed before it.

    What is pushed plays in real time, so a burst of steps makes a queue. A step that comes much
    too late is not heard at all. While there is a queue, silence is left out of it at once, and
    speech as soon as the queue is longer than is allowed; what is allowed shrinks until no more
    than one step waits.
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
        self._now_secs = 0.0
        self._late_secs = 0.0
        self._queue_secs = 0.0
        self.lag_secs = 0.0
        self.dropped_steps = 0

    def observe(self, now_secs: float, due_secs: float) -> None:
        """Note that a step arrived.

        Args:
            now_secs: The time.
            due_secs: When the step of user audio that it answers was due.
        """
        self._now_secs = now_secs
        self._delays_secs.append(now_secs - due_secs)
        self._late_secs = now_secs - due_secs - min(self._delays_secs)
        self._queue_secs = max(0.0, self._played_until_secs - now_secs)
        self.lag_secs = self._late_secs + self._queue_secs
        if self.lag_secs <= STEP_SECS:
            self._late_since_secs = None
        elif self._late_since_secs is None:
            self._late_since_secs = now_secs

    def admit(self, *, quiet: bool) -> bool:
        """Decide whether the step just observed is heard.

        Args:
            quiet: Whether the step is silence.

        Returns:
            Whether to push it.
        """
        too_old = self._late_secs > self._settings.max_lag_secs
        if too_old or self._queue_secs > self._allowed_queue_secs(quiet=quiet):
            self.dropped_steps += 1
            return False
        self._played_until_secs = max(self._now_secs, self._played_until_secs) + STEP_SECS
        return True

    def flush(self) -> None:
        """Note that everything pushed and not yet played was thrown away."""
        self._played_until_secs = -math.inf

    def _allowed_queue_secs(self, *, quiet: bool) -> float:
        if quiet:
            return STEP_SECS / 2
        if self._late_since_secs is None:
            return self._settings.max_lag_secs
        passed = (self._now_secs - self._late_since_secs) / self._settings.settle_secs
        return max(STEP_SECS, self._settings.max_lag_secs * (1 - passed))
