"""What the agent says while the LLM thinks: once a turn, and only if the answer is late."""

from collections.abc import Sequence

from pipecat_duplex.session import STEP_SECS


class Filler:
    """Decides when a filler is said, and which one."""

    def __init__(self) -> None:
        """Initialize without a turn."""
        self._texts: tuple[str, ...] = ()
        self._after_steps = 0
        self._said = 0
        self._steps: int | None = None

    def set(self, texts: str | Sequence[str] | None, after_ms: float) -> None:
        """Choose what is said, and when.

        Args:
            texts: One, or several that take turns; None says nothing.
            after_ms: Silence of the agent after the end of the user's turn.
        """
        self._texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
        self._after_steps = max(1, round(after_ms / 1000 / STEP_SECS))

    def turn_ended(self) -> None:
        """The user's turn is over."""
        self._steps = 0

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
