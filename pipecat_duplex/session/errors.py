"""The errors that a person is meant to read and act on."""


class DuplexError(Exception):
    """Base of all errors that a person is meant to read and act on."""


class AtCapacity(DuplexError):
    """Every slot is taken. Raised at once by ``open``: callers are never queued."""


class CheckpointError(DuplexError):
    """A checkpoint cannot be found, is incomplete, or does not hold a Moshi-family model."""


class MissingExtra(DuplexError):
    """An optional part of the package is not installed; the message says what to install."""


class CannotSay(DuplexError):
    """Words cannot be put into the agent's mouth; the message says which, or why.

    Parameters:
        lacks: The words that the model does not have, if that is why.
    """

    def __init__(self, message: str, lacks: tuple[str, ...] = ()):
        """Initialize.

        Args:
            message: Which words, or why.
            lacks: The words that the model does not have.
        """
        super().__init__(message)
        self.lacks = lacks


class InvalidPrompt(DuplexError, ValueError):
    """A persona cannot be had: there is no such voice, or it cannot be read."""


class InvalidHistory(DuplexError, ValueError):
    """A history is damaged, or was made with another checkpoint."""


class InvalidAudio(DuplexError, ValueError):
    """Audio handed to the package has the wrong shape, type, rate or length."""


class SessionEnded(DuplexError):
    """The session is over and takes no more audio.

    Parameters:
        session_id: The session that ended.
        reason: Why, in words for a person.
    """

    def __init__(self, session_id: str, reason: str):
        """Initialize the error.

        Args:
            session_id: The session that ended.
            reason: Why, in words for a person.
        """
        super().__init__(f"session {session_id} ended: {reason}")
        self.session_id = session_id
        self.reason = reason


def one_line(error: Exception) -> str:
    """The first line of an error that says something, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
