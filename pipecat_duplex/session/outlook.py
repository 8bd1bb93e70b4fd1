"""What a session knows of its own future."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pipecat_duplex.session.contract import DuplexSession


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether a session will go on where it is. Plain data, gathered without waiting.

    Parameters:
        leave: Why its server asks callers to go on elsewhere; empty while it does not.
        silent_secs: For how long the server has given no sign of life, not even an answer to a
            ping. Stalls of this process are not counted. ``None`` is not known.
    """

    leave: str = ""
    silent_secs: float | None = None


@runtime_checkable
class TellsOutlook(Protocol):
    """A :class:`~pipecat_duplex.session.DuplexSession` that can tell its outlook; not all can."""

    def outlook(self) -> Outlook:
        """Return the outlook at this moment. Never waits."""
        ...


def outlook_of(session: DuplexSession) -> Outlook:
    """Return what a session knows of its future."""
    tell = getattr(session, "outlook", None)  # Asking for the protocol would take 60 µs.
    return Outlook() if tell is None else tell()
