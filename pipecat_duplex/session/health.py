"""Whether a backend can serve conversations at this moment."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """What a backend knows of its own state. Plain data, gathered without waiting.

    Parameters:
        ok: Whether conversations are served.
        reason: Why they are not, in words for a person; empty while ``ok``.
        lag_secs: Time beyond a step's length that a due step has been waited for, or is being
            computed; 0 while nothing is due. Grows while a step hangs.
        stuck: Not ``ok``, but it may come back. A backend that is neither ``ok`` nor ``stuck`` has
            ended for good, and its process should be started anew.
    """

    ok: bool
    reason: str = ""
    lag_secs: float = 0.0
    stuck: bool = False


@runtime_checkable
class ReportsHealth(Protocol):
    """A :class:`~pipecat_duplex.session.DuplexBackend` that can tell its health; not all can."""

    def health(self) -> BackendHealth:
        """Return the state at this moment. Never waits, and may be called from any thread."""
        ...
