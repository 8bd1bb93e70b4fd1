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

MEMORY_SECS = 10.0
"""What was longer ago says nothing about how late steps are now."""

ROUNDING_SECS = 1e-6

MAX_DRIFT = 0.005
"""The user's clock may run this much faster or slower than ours; sound cards stay within 0.1 %."""

DRIFT_STEPS = 64
"""The user's clock is read off the earliest of so many steps: those that no network delayed."""

AHEAD_SECS = STEP_SECS / 2
"""Audio that runs further ahead of the time line is no drift: its place was taken by silence."""

GAIN_STEPS = 5
"""After a stall, steps come faster than they play: within so many they gain more than one."""


@dataclass(frozen=True)
class ClockSettings:
    """How much lateness is tolerated, and how it is caught up.

    Parameters:
        patience_secs: Audio this late is replaced by silence, so that the agent goes on.
            ``math.inf`` never fills.
        slack_secs: Audio may run this far ahead of the time line (a burst of late packets) before
            it is dropped: its place has been taken by silence.
        max_fill_secs: A longer gap (a machine that slept) is skipped instead of filled.
        max_lag_secs: Agent audio that is later than this is not heard.
        settle_secs: After a stall, no more than one step (and the jitter of late) waits to be
            played this long after the steps have caught up.
    """

    patience_secs: float = 0.08
    slack_secs: float = 0.24
    max_fill_secs: float = 1.0
    max_lag_secs: float = 0.25
    settle_secs: float = 1.5


class InputClock:
    """Decides which of the user's steps the model hears, and when silence takes their place.

    The time line follows the user's clock, which is a little faster or slower than ours: a drift
    never becomes a delay that has to be filled or dropped.
    """

    def __init__(self, settings: ClockSettings | None = None):
        """Initialize a clock that has not started.

        Args:
            settings: How much lateness is borne.
        """
        self._settings = settings or ClockSettings()
        self._origin_secs: float | None = None
        self._steps = 0
        self._origins_secs: deque[float] = deque(maxlen=DRIFT_STEPS)
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
    def place(self) -> int:
        """The step admitted or filled last, counted from 0."""
        return self._steps - 1

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
        # A little is allowed for: a step ahead by less than half of itself was merely early.
        if ahead_secs > self._settings.slack_secs or (quiet and ahead_secs > AHEAD_SECS):
            self.dropped_steps += 1
            self._origins_secs.clear()
            return False
        self._steps += 1
        self._follow_drift(now_secs)
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
            self._steps += int(-wait_secs / STEP_SECS)  # The hole keeps its place in time.
        self._steps += 1
        self.filled_steps += 1
        self._origins_secs.clear()
        return True

    def secs_to_fill(self, now_secs: float) -> float | None:
        """Return the time until silence is needed, or ``None`` if it never is.

        Args:
            now_secs: The time.
        """
        if self._origin_secs is None or math.isinf(self._settings.patience_secs):
            return None
        return self._end_secs(self._steps) + self._settings.patience_secs - now_secs

    def _follow_drift(self, now_secs: float) -> None:
        """Move the time line towards the earliest of the latest steps, too slowly to be heard."""
        assert self._origin_secs is not None
        self._origins_secs.append(now_secs - self._steps * STEP_SECS)
        if len(self._origins_secs) < DRIFT_STEPS:
            return  # Steps were dropped or filled in a moment ago: that is no drift.
        error_secs = min(self._origins_secs) - self._origin_secs
        if error_secs < -AHEAD_SECS:
            return
        most_secs = MAX_DRIFT * STEP_SECS
        self._origin_secs += max(-most_secs, min(most_secs, error_secs / (DRIFT_STEPS / 2)))

    def _end_secs(self, step: int) -> float:
        if self._origin_secs is None:
            raise RuntimeError("the clock has not started")
        return self._origin_secs + (step + 1) * STEP_SECS


class OutputClock:
    """Paces playback: a stall never becomes a lasting delay, and jitter never makes holes.

    The lag of a step is its delay beyond the smallest delay of the last ten seconds: how late it
    came, and how long it waits for the steps that were pushed before it.

    Steps that arrive in bursts form a queue. A queue that regularly drains is a jitter buffer and
    is kept. A queue that never falls below a step plus recent jitter for a while is pure delay,
    and is removed in a single cut. Silence in the queue is removed at once.

    A step that comes much too late is not heard, and neither are the steps after it until they
    have caught up. Steps that do not catch up are heard late.
    """

    def __init__(self, settings: ClockSettings | None = None):
        """Initialize the clock.

        Args:
            settings: How much lateness is borne.
        """
        self._settings = settings or ClockSettings()
        self._delays_secs: deque[float] = deque(maxlen=round(MEMORY_SECS / STEP_SECS))
        self._jitter = _Jitter(max_secs=2 * self._settings.max_lag_secs)
        self._standing = _StandingQueue(self._settings.settle_secs / 4)
        self._played_until_secs = -math.inf
        self._old_delays_secs: deque[float] = deque(maxlen=GAIN_STEPS + 1)
        self._now_secs = 0.0
        self._due_secs = 0.0
        self._step_secs = STEP_SECS
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
        # What is heard plays by the user's clock, which the due times follow.
        step_secs, self._due_secs = due_secs - self._due_secs, due_secs
        drifts = abs(step_secs - STEP_SECS) <= MAX_DRIFT * STEP_SECS + ROUNDING_SECS
        self._step_secs = step_secs if drifts else STEP_SECS
        # User audio may run ahead of the time line. The answer to it is early, but that makes no
        # later step late.
        delay_secs = max(0.0, now_secs - due_secs)
        self._delays_secs.append(delay_secs)
        self._late_secs = delay_secs - min(self._delays_secs)
        self._queue_secs = max(0.0, self._played_until_secs - now_secs)
        self._jitter.observe(now_secs, self._late_secs)
        self._standing.observe(now_secs, self._queue_secs)
        self.lag_secs = self._late_secs + self._queue_secs
        # Once steps are left out, they are until they have caught up: one hole, and not several.
        catching_up = bool(self._old_delays_secs)
        if self._late_secs > (self._usual_lag_secs if catching_up else self._max_lag_secs):
            self._old_delays_secs.append(delay_secs)
        else:
            self._old_delays_secs.clear()

    def admit(self, *, quiet: bool) -> bool:
        """Decide whether the step just observed is heard.

        Args:
            quiet: Whether the step is silence.

        Returns:
            Whether to push it.
        """
        if self._too_old() or self._waits_too_long(quiet=quiet):
            self.dropped_steps += 1
            self._standing.shorten(STEP_SECS)
            return False
        self._played_until_secs = max(self._now_secs, self._played_until_secs) + self._step_secs
        return True

    def flush(self) -> None:
        """Note that everything pushed and not yet played was thrown away."""
        self._played_until_secs = -math.inf

    @property
    def _usual_lag_secs(self) -> float:
        return self._jitter.secs + STEP_SECS + ROUNDING_SECS

    @property
    def _max_lag_secs(self) -> float:
        return max(self._settings.max_lag_secs, self._jitter.secs)

    def _too_old(self) -> bool:
        """Tell whether silence does better than this step: it brings the ones after it forward.

        Where steps stay late and gain nothing, it does not. The machine is too slow for now, and
        speech that is late is better than none.
        """
        old_secs = self._old_delays_secs
        gains_nothing = len(old_secs) > GAIN_STEPS and old_secs[-1] > old_secs[0] - STEP_SECS
        return bool(old_secs) and not gains_nothing

    def _waits_too_long(self, *, quiet: bool) -> bool:
        if quiet:
            return self._queue_secs > self._jitter.secs + STEP_SECS / 2
        stands_too_long = self._standing.secs > self._usual_lag_secs
        return stands_too_long or self._queue_secs > self._max_lag_secs


class _Jitter:
    """How late steps are again and again: the second latest time among the latest seconds'."""

    def __init__(self, max_secs: float):
        """Initialize.

        Args:
            max_secs: Steps later than this are those of a stall, which no queue bridges.
        """
        self._max_secs = max_secs
        self._hiccups: deque[tuple[float, float]] = deque()
        self._on_time = True
        self.secs = 0.0

    def observe(self, now_secs: float, late_secs: float) -> None:
        """Note how late a step came. Late steps in a row are one hiccup, as late as its latest."""
        if late_secs <= STEP_SECS / 2:
            self._on_time = True
        elif self._on_time:
            self._on_time = False
            self._hiccups.append((now_secs, late_secs))
        else:
            began_secs, latest_secs = self._hiccups[-1]
            self._hiccups[-1] = began_secs, max(latest_secs, late_secs)
        while self._hiccups and self._hiccups[0][0] < now_secs - MEMORY_SECS:
            self._hiccups.popleft()
            self._on_time = self._on_time or not self._hiccups
        again = sorted(late for _, late in self._hiccups if late <= self._max_secs)[:-1]
        self.secs = again[-1] if again else 0.0


class _StandingQueue:
    """The least that has waited to be played in a while."""

    def __init__(self, window_secs: float):
        """Initialize.

        Args:
            window_secs: How long a while is.
        """
        self._window_secs = window_secs
        self._queues_secs: deque[tuple[float, float]] = deque()

    @property
    def secs(self) -> float:
        """The least; below zero if too much was left out."""
        return min(queue_secs for _, queue_secs in self._queues_secs)

    def observe(self, now_secs: float, queue_secs: float) -> None:
        """Note how much waits when a step comes."""
        self._queues_secs.append((now_secs, queue_secs))
        while self._queues_secs[0][0] < now_secs - self._window_secs:
            self._queues_secs.popleft()

    def shorten(self, secs: float) -> None:
        """Note that something was left out: the queue would have been that much shorter."""
        self._queues_secs = deque((at, queue - secs) for at, queue in self._queues_secs)
