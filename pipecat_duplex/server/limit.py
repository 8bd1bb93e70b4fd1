"""Limits on how fast something may come."""


class RateLimit:
    """A bucket that runs out at a steady rate and must not overflow.

    The time is an argument.
    """

    def __init__(self, per_sec: float, burst: float):
        """Initialize empty.

        Args:
            per_sec: What may come in the long run.
            burst: What may come at once.
        """
        self._per_sec = per_sec
        self._burst = burst
        self._level = 0.0
        self._at_secs = 0.0

    def take(self, amount: float, now_secs: float) -> bool:
        """Take what came.

        Args:
            amount: How much came.
            now_secs: When.

        Returns:
            False if that is more than may come.
        """
        gone = max(0.0, now_secs - self._at_secs) * self._per_sec
        self._at_secs = now_secs
        self._level = max(0.0, self._level - gone) + amount
        return self._level <= self._burst

    def room(self, now_secs: float) -> float:
        """How much may come at once, at this time."""
        gone = max(0.0, now_secs - self._at_secs) * self._per_sec
        return self._burst - max(0.0, self._level - gone)


class LineLimit:
    """Lets so many lines into a log, and counts those that it keeps out.

    The time is an argument.
    """

    def __init__(self, per_sec: float, burst: float):
        """Initialize without lines.

        Args:
            per_sec: Lines in the long run.
            burst: Lines at once.
        """
        self._limit = RateLimit(per_sec, burst)
        self._left_out = 0

    def take(self, now_secs: float) -> int | None:
        """Ask whether a line may be written.

        Returns:
            How many were left out before it; ``None`` if it is left out too.
        """
        if self._limit.room(now_secs) < 1:
            self._left_out += 1
            return None
        self._limit.take(1, now_secs)
        left_out, self._left_out = self._left_out, 0
        return left_out


class AudioDebt:
    """How far a caller's audio lags behind the clock.

    A second without audio counts fully, a second of audio pays for two. So gaps are forgiven as the
    call goes on, and a frame now and then does not hold a slot. The time is an argument.
    """

    def __init__(self, now_secs: float):
        """Initialize without debt."""
        self._at_secs = now_secs
        self._secs = 0.0

    def secs(self, now_secs: float) -> float:
        """Return the debt."""
        return self._secs + max(0.0, now_secs - self._at_secs)

    def pay(self, audio_secs: float, now_secs: float) -> None:
        """Take note of audio."""
        self._secs = max(0.0, self.secs(now_secs) - 2 * audio_secs)
        self._at_secs = now_secs

    def forgive(self, now_secs: float) -> None:
        """Begin anew: the server was what took so long."""
        self._secs, self._at_secs = 0.0, now_secs
