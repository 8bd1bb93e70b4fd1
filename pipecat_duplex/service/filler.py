"""What the agent says while the LLM thinks: once a turn, and only if the answer is late.

In the context a filler is the beginning of the answer's message. So it stands behind the user's
message, however late that is known, and the LLM is never run on words of its own.
"""

from collections.abc import Sequence

from pipecat_duplex.session import STEP_SECS


class Filler:
    """Decides when a filler is said, and which one.

    Parameters:
        wished: Whether the turn was over because the model wished to speak.
    """

    def __init__(self) -> None:
        """Initialize without a turn."""
        self._texts: tuple[str, ...] = ()
        self._after_steps = 0
        self._said = 0
        self._steps: int | None = None
        self._number: int | None = None
        self.wished = False

    def set(self, texts: str | Sequence[str] | None, after_ms: float) -> None:
        """Choose what is said, and when.

        Args:
            texts: One, or several that take turns; None says nothing.
            after_ms: Silence of the agent after the end of the user's turn.
        """
        self._texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
        self._after_steps = max(1, round(after_ms / 1000 / STEP_SECS))

    def turn_ended(self, *, wished: bool) -> None:
        """The user's turn is over, because the model wished to speak or because it was silent."""
        self._steps = 0
        self.wished = wished

    def answered(self) -> None:
        """The answer is there, or is not wanted any more."""
        self._steps = None

    def step(self, *, is_thinking: bool) -> str | None:
        """Observe a step in which nobody speaks; return the filler if it is due.

        Args:
            is_thinking: Whether an answer is on its way.
        """
        if self._steps is None or not self._texts:
            return None
        self._steps += 1
        if self._steps < self._after_steps or not is_thinking:
            return None
        self._steps = None
        self._said += 1
        return self._texts[(self._said - 1) % len(self._texts)]

    def begin_message(self, number: int | None) -> None:
        """It is being said, and the answer goes on from it.

        Args:
            number: Its utterance; ``None`` if it cannot be said.
        """
        self._number = number

    @property
    def has_message(self) -> bool:
        """Whether a filler was said whose answer may still come."""
        return self._number is not None

    def is_open(self, number: int | None) -> bool:
        """Whether this utterance is a filler whose answer may still come."""
        return number is not None and number == self._number

    def end_message(self) -> None:
        """No answer goes on from it."""
        self._number = None
