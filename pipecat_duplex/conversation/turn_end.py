"""When the user's turn is over: when the model wishes to speak, which it does not in a pause."""


class TurnEnd:
    """Decides, once a turn, that the user's turn is over.

    The model's wish counts where the user is silent. A model that never wishes to speak is not
    waited for longer than a set time.
    """

    def __init__(self, patience_steps: int) -> None:
        """Initialize.

        Args:
            patience_steps: Steps of silence after which the turn is over without a wish.
        """
        self._patience_steps = patience_steps
        self._quiet_steps = 0

    def begin(self) -> None:
        """A turn begins."""
        self._quiet_steps = 0

    def step(self, *, user_speaking: bool, wish: bool) -> bool:
        """Observe a step of an open turn.

        Args:
            user_speaking: Whether the user speaks.
            wish: Whether the model wishes to speak, or does.

        Returns:
            Whether the turn is over.
        """
        if user_speaking:
            self._quiet_steps = 0
            return False
        self._quiet_steps += 1
        return wish or self._quiet_steps >= self._patience_steps
