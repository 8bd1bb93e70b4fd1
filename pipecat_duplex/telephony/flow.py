"""How much a peer may send: a bucket that fills steadily, and from which everything is taken."""

from dataclasses import dataclass


@dataclass
class Allowance:
    """So much a second, and so much at once after a pause.

    Parameters:
        per_sec: What is allowed in the long run.
        at_once: What may come in one go; a line that stalled delivers what it held back.
    """

    per_sec: float
    at_once: float
    _left: float = 0.0
    _last_secs: float | None = None

    def take(self, amount: float, now_secs: float) -> bool:
        """Take an amount, and tell whether it was allowed.

        Args:
            amount: How much.
            now_secs: The time, of a steady clock.
        """
        if self._last_secs is None:
            self._left = self.at_once
        else:
            grown = self._left + (now_secs - self._last_secs) * self.per_sec
            self._left = min(self.at_once, grown)
        self._last_secs = now_secs
        if amount > self._left:
            return False
        self._left -= amount
        return True
