"""What our own servers know beyond Moshi's protocol: words to speak, tokens, histories."""

import asyncio
import itertools
from collections import deque
from dataclasses import replace

from pipecat_duplex import protocol
from pipecat_duplex.session import CannotSay, InvalidHistory, SessionEnded, Step


class Extensions:
    """Requests that wait for their answer, and what the server notes of its steps."""

    def __init__(self, session_id: str):
        """Initialize without requests.

        Args:
            session_id: The session, for errors.
        """
        self._session_id = session_id
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[int]] = {}
        self._notes: deque[protocol.SpeechNote] = deque()
        self._tokens: deque[protocol.Tokens] = deque()
        self._heard: deque[protocol.Heard] = deque()
        self._restored: asyncio.Future[None] | None = None

    def ask(self) -> tuple[int, asyncio.Future[int]]:
        """Begin a request.

        Returns:
            Its number, and what the server will answer: the number of the utterance, or
            :class:`CannotSay`.
        """
        number = next(self._numbers)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._requests[number] = answer
        return number, answer

    def take_answer(self, answer: protocol.SayAnswer) -> None:
        """Take the server's answer to a request; one that nobody asked for is ignored."""
        waiting = self._requests.pop(answer.request, None)
        if waiting is None or waiting.done():
            return
        if answer.utterance_id is None:
            reason = answer.error or "the server gave no reason"
            waiting.set_exception(CannotSay(reason, answer.lacks))
        else:
            waiting.set_result(answer.utterance_id)

    def note(self, note: protocol.SpeechNote) -> None:
        """Take a note on a step that is about to come."""
        self._notes.append(note)

    def annotate(self, step: Step) -> Step:
        """Return a step with what was noted for it, and for steps before it that were lost."""
        while self._notes and self._notes[0].index <= step.index:
            note = self._notes.popleft()
            utterance_id = note.utterance_id or step.utterance_id
            said, wish = step.said + note.said, step.wish or note.wish
            unheeded = step.unheeded or (note.unheeded and note.index == step.index)
            step = replace(step, utterance_id=utterance_id, said=said, wish=wish, unheeded=unheeded)
        while self._tokens and self._tokens[0].index <= step.index:
            tokens = self._tokens.popleft()
            if tokens.index == step.index:
                step = replace(step, tokens=tokens.tokens)
        while self._heard and self._heard[0].index <= step.index:
            step = replace(step, heard=step.heard + self._heard.popleft().words)
        return step

    def note_tokens(self, tokens: protocol.Tokens) -> None:
        """Take the tokens of a step that is about to come."""
        self._tokens.append(tokens)

    def note_heard(self, heard: protocol.Heard) -> None:
        """Take words of the user's that come with a step that is about to come."""
        self._heard.append(heard)

    def ask_to_restore(self) -> asyncio.Future[None]:
        """Begin to restore a history; the future is what the server answers."""
        self._restored = asyncio.get_running_loop().create_future()
        return self._restored

    def take_restored(self, answer: protocol.HistoryPiece) -> None:
        """Take the server's answer to a history."""
        if self._restored is None or self._restored.done():
            return
        if answer.data:
            self._restored.set_exception(InvalidHistory(answer.data.decode(errors="replace")))
        else:
            self._restored.set_result(None)

    def end(self, reason: str) -> None:
        """End the requests that are open."""
        waiting_for = [*self._requests.values(), *([self._restored] if self._restored else [])]
        for waiting in waiting_for:
            if not waiting.done():
                waiting.set_exception(SessionEnded(self._session_id, reason))
        self._requests.clear()
