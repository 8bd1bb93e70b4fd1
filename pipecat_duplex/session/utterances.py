"""What the agent of a conversation was asked to say, over all its sessions."""

from pipecat_duplex.session.saying import Saying, Sayings
from pipecat_duplex.session.step import Said, Step


class Utterances:
    """Keeps the numbers under which a conversation's words are known: a session has its own.

    Words are with the session, wait for the next one, or have ended.
    """

    def __init__(self):
        """Initialize with nothing to say."""
        self._sayings = Sayings()
        self._numbers: dict[int, int] = {}  # the conversation's, by the session's
        self._waiting: list[tuple[int, Saying]] = []
        self._ended: list[Said] = []

    def give(self, inner: int, number: int, saying: Saying) -> None:
        """Note that the session took a saying, under a number of its own."""
        self._sayings.add(inner, saying)
        self._numbers[inner] = number

    def wait(self, number: int, saying: Saying) -> None:
        """Let a saying wait for the next session."""
        self._waiting.append((number, saying))

    def waiting(self, number: int) -> Saying | None:
        """Return a saying that waits."""
        return next((saying for each, saying in self._waiting if each == number), None)

    def given(self, number: int) -> tuple[int, Saying] | None:
        """Return a saying that the session has, with the session's number; None if it is over."""
        for inner, saying in self._sayings.items():
            if self._numbers[inner] == number:
                return inner, saying
        return None

    def hear(self, step: Step) -> tuple[int | None, tuple[Said, ...]]:
        """Take a step of the session.

        Returns:
            The utterance that it belongs to and those that came to their end, by the conversation's
            numbers.
        """
        number = self._numbers.get(step.utterance_id) if step.utterance_id else None
        if step.utterance_id is not None:
            self._sayings.hear(step.utterance_id, step.text_piece)
        return number, (*self.take_ended(), *map(self._end, step.said))

    def refuse(self, number: int, saying: Saying) -> None:
        """End a saying that no session says any more."""
        self._ended.append(saying.ended(number))

    def drop_waiting(self) -> None:
        """End what waits."""
        for number, saying in self._waiting:
            self.refuse(number, saying)
        self._waiting.clear()

    def take_ended(self) -> tuple[Said, ...]:
        """Return what has ended outside of a session, to be told with the next step."""
        ended, self._ended = self._ended, []
        return tuple(ended)

    def take_back(self) -> None:
        """Let what the session has not said wait for the next one."""
        left = [(self._numbers[i], saying.continued()) for i, saying in self._sayings.items()]
        self._waiting = left + self._waiting
        self._sayings.clear()
        self._numbers.clear()

    def take_waiting(self) -> list[tuple[int, Saying]]:
        """Return what waits, oldest first."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _end(self, said: Said) -> Said:
        saying = self._sayings.get(said.utterance_id)
        self._sayings.end(said)
        number = self._numbers.pop(said.utterance_id, said.utterance_id)
        before = saying.before if saying is not None else ""
        return Said(number, f"{before} {said.spoken}".strip(), said.unspoken, said.unsayable)
