"""Words that a server's agent was asked to speak, as seen by the caller."""

import asyncio
import itertools
from collections import deque
from dataclasses import replace

from pipecat_duplex import wire
from pipecat_duplex.session import CannotSay, SessionEnded, Step


class RemoteSpeech:
    """Requests that wait for their answer, and what the server notes of its steps."""

    def __init__(self, session_id: str):
        """Initialize without requests.

        Args:
            session_id: The session, for errors.
        """
        self._session_id = session_id
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[int]] = {}
        self._notes: deque[wire.SpeechNote] = deque()

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

    def take_answer(self, answer: wire.SayAnswer) -> None:
        """Take the server's answer to a request; one that nobody asked for is ignored."""
        waiting = self._requests.pop(answer.request, None)
        if waiting is None or waiting.done():
            return
        if answer.utterance_id is None:
            waiting.set_exception(CannotSay(answer.error or "the server gave no reason"))
        else:
            waiting.set_result(answer.utterance_id)

    def note(self, note: wire.SpeechNote) -> None:
        """Take a note on a step that is about to come."""
        self._notes.append(note)

    def annotate(self, step: Step) -> Step:
        """Return a step with what was noted for it, and for steps before it that were lost."""
        while self._notes and self._notes[0].index <= step.index:
            note = self._notes.popleft()
            utterance_id = note.utterance_id or step.utterance_id
            step = replace(step, utterance_id=utterance_id, said=step.said + note.said)
        return step

    def end(self, reason: str) -> None:
        """End the requests that are open."""
        for waiting in self._requests.values():
            if not waiting.done():
                waiting.set_exception(SessionEnded(self._session_id, reason))
        self._requests.clear()
