"""Whether a session that does not answer will answer again."""

SILENT_SECS = 0.4
"""A server that gives no sign of life for so long while steps are due may be gone."""

STUCK_SECS = 2.0
"""One that answers pings and no steps for so long may be stuck; one that is slow is not."""

CALM_SECS = 30.0
"""After so long, a doubt that was for nothing is forgotten."""

MOST_CAUTION = 3


class Doubt:
    """Doubts a session whose steps are not answered, and later each time that it was wrong.

    Whoever doubts prepares another session. Where servers stall again and again, that would load
    them further, so each doubt for nothing doubles the time until the next. The time is an
    argument, and should stand still while this process does.
    """

    def __init__(self):
        """Initialize without doubts."""
        self._due_secs: float | None = None
        self._caution = 0
        self._raised_secs = float("-inf")

    def begin(self) -> None:
        """Begin with another session."""
        self._due_secs = None

    def send(self, now_secs: float) -> None:
        """Take note of a step that was sent."""
        if self._due_secs is None:
            self._due_secs = now_secs

    def hear(self, now_secs: float, *, waits: bool) -> None:
        """Take note of a step that was answered.

        Args:
            now_secs: The time.
            waits: Whether others wait for an answer.
        """
        self._due_secs = now_secs if waits else None

    def why(self, silent_secs: float | None, now_secs: float) -> str:
        """Return why the session is doubted; empty if it is not.

        Args:
            silent_secs: For how long its server has given no sign of life; ``None`` if not known.
            now_secs: The time.
        """
        if self._due_secs is None:
            return ""
        if now_secs - self._raised_secs > CALM_SECS:
            self._caution = 0
        patience = 2**self._caution
        waited_secs = now_secs - self._due_secs
        quiet_secs = min(waited_secs, silent_secs or 0.0)
        if quiet_secs > SILENT_SECS * patience:
            return f"its server has given no sign of life for {quiet_secs:.1f} s"
        if waited_secs > STUCK_SECS * patience:
            return f"it has answered no step for {waited_secs:.1f} s"
        return ""

    def raise_caution(self, now_secs: float) -> None:
        """Take note that the session has answered after all."""
        self._caution = min(self._caution + 1, MOST_CAUTION)
        self._raised_secs = now_secs
