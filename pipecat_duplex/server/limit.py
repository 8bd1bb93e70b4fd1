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
