"""A TTS downstream speaks for the agent, and the model keeps the floor: it believes that it speaks.

While the TTS sounds, the model tells a story that nobody hears. It hears the user meanwhile, and
falls silent when it would give up the floor: see :mod:`pipecat_duplex.conversation.mime`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

from pipecat.frames.frames import (
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSSpeakFrame,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.tts_service import TTSService

from pipecat_duplex.conversation.mime import MIMED, Mime
from pipecat_duplex.service.llm_upstream import with_parts
from pipecat_duplex.session import DuplexError, DuplexSession, SessionEnded, Step
from pipecat_duplex.session.saying import Saying

_BEING_TOLD = 0

FILLER = 0
"""The number of what is said in front of a response."""

SOUND_DB, SILENCE_DB = -20.0, -120.0
"""Level of the agent while the TTS sounds and while it does not: its audio does not pass here."""


class Pushing(Protocol):
    """The service, as far as it matters here."""

    async def push_frame(self, frame: Frame) -> None:
        """Push a frame downstream."""
        ...

    async def push_error(self, error_msg: str, exception: Exception | None = None) -> None:
        """Push an error frame."""
        ...

    def create_task(self, coroutine: Coroutine, name: str | None = None) -> asyncio.Task:
        """Run something beside."""
        ...


def tts_downstream_of(service: FrameProcessor) -> bool:
    """Whether a TTS stands behind a processor in its pipeline."""
    after = service.next
    while after is not None:
        if any(isinstance(each, TTSService) for each in with_parts(after)):
            return True
        after = after.next
    return False


class ForeignVoice:
    """Hands text to the TTS, and lets the model mime while it sounds.

    Parameters:
        is_on: Whether a TTS speaks for the agent at all.
        text: What the TTS was given since it last fell silent.
        number: The response of the LLM that it was given last; ``FILLER`` for what comes in front
            of one, ``None`` for something else.
    """

    def __init__(self, service: Pushing, yield_steps: int):
        """Initialize with a silent voice.

        Args:
            service: Who pushes frames.
            yield_steps: Silence of the mime that is a yield.
        """
        self._service = service
        self._mime = Mime(yield_steps)
        self._session: DuplexSession | None = None
        self._mimed: int | None = None
        self._responses = 0
        self._open: int | None = None
        self._to_context = True
        self._waiting: list[Saying] | None = []
        self._given = False
        self._sounds = False
        self.is_on = False
        self.text = ""
        self.number: int | None = None

    #
    # what is to be spoken
    #

    @property
    def has_unspoken(self) -> bool:
        """Whether the TTS was given something that it has not begun to speak."""
        return self._given

    async def begin(self, text: str, *, to_context: bool, more: bool) -> int | None:
        """Hand the TTS the beginning of a response; returns its number."""
        self._responses += 1
        self.number = self._open = self._responses
        self._to_context = to_context
        await self._service.push_frame(LLMFullResponseStartFrame())
        await self.go_on(self._responses, text, more=more)
        return self._responses

    async def go_on(self, number: int, text: str, *, more: bool) -> None:
        """Hand it more of a response, unless that was interrupted."""
        if number != self._open:
            return
        if text:
            self._note(text)
            frame = LLMTextFrame(text)
            frame.append_to_context = self._to_context
            await self._service.push_frame(frame)
        if not more:
            self._open = None
            await self._service.push_frame(LLMFullResponseEndFrame())

    async def say(self, saying: Saying) -> None:
        """Let the TTS speak a text, once somebody listens."""
        if self._waiting is not None:
            self._waiting.append(saying)
            return
        self.number = None
        self._note(f"{saying.text} ")
        frame = TTSSpeakFrame(saying.text, append_to_context=saying.to_context)
        await self._service.push_frame(frame)

    async def say_filler(self, text: str) -> int:
        """Let the TTS speak a text that the next response goes on from; returns its number."""
        # In a response that is open, the context's message is not ended by it.
        await self._service.push_frame(LLMFullResponseStartFrame())
        await self.say(Saying(text))
        self.number = FILLER
        return FILLER

    async def hush(self) -> None:
        """Drop the rest: the interruption that comes with it stops the TTS."""
        self._open = None
        self._given = False

    def _note(self, text: str) -> None:
        if not (self._given or self._sounds):
            self.text = ""
        self.text += text
        self._given = True

    #
    # what is heard
    #

    @property
    def sounds(self) -> bool:
        """Whether the TTS sounds, and has not been stopped."""
        return self._mime.is_on

    @property
    def level_db(self) -> float:
        """Level of the agent, as far as it is known here."""
        return SOUND_DB if self.sounds else SILENCE_DB

    @property
    def over_steps(self) -> int:
        """Steps since the user began to speak over the voice."""
        return self._mime.over_steps

    def begin_session(self, session: DuplexSession) -> None:
        """The model is in this session from now on; what is mimed is told it with the next step."""
        self._session = session
        self._mimed = None

    async def started(self) -> None:
        """The TTS begins to sound."""
        self._given, self._sounds = False, True
        if self.is_on and not self._mime.is_on:
            self._mime.begin()
            self._tell_story()

    async def stopped(self) -> None:
        """It has fallen silent, or was interrupted."""
        self._sounds = False
        if not self._mime.is_on:
            return
        self._mime.end()
        self._mimed = None
        await self._try(lambda session: session.hush())

    async def interrupted(self) -> None:
        """Nothing of what it was given is heard any more."""
        await self.hush()
        await self.stopped()

    async def step(self, step: Step, user_level_db: float, agent_level_db: float) -> bool:
        """Follow a step of the model.

        Args:
            step: The step.
            user_level_db: Level of the user's audio, dBFS.
            agent_level_db: Level of the model's own audio, which nobody hears, dBFS.

        Returns:
            Whether the model gives up the floor.
        """
        waiting, self._waiting = self._waiting, None
        for saying in waiting or ():
            await self.say(saying)
        if self._mime.step(
            agent_level_db=agent_level_db, user_level_db=user_level_db, unheeded=step.unheeded
        ):
            return True
        if any(said.utterance_id == self._mimed for said in step.said):
            self._mimed = None
        # Dropped while the user speaks over it, it is a yield in the making.
        if self._mime.is_on and self._mimed is None and not self._mime.over_steps:
            self._tell_story()
        return False

    def _tell_story(self) -> None:
        """Let the model begin. A server elsewhere answers after a while; nobody waits for it."""

        async def tell(session: DuplexSession) -> None:
            number = await session.say(MIMED, cut_in=True)
            if self._mime.is_on:
                self._mimed = number
            else:  # The voice has stopped meanwhile.
                await session.hush()

        self._mimed = _BEING_TOLD
        self._service.create_task(self._try(tell), "foreign_voice")

    async def _try(self, act: Callable[[DuplexSession], Awaitable[None]]) -> None:
        if self._session is None:
            return
        try:
            await act(self._session)
        except SessionEnded:
            pass  # The next session is told.
        except DuplexError as e:
            self._session = None  # Told once: the next session may be able to.
            await self._service.push_error(
                f"The model cannot follow the voice, so nobody can talk over it: {e}", exception=e
            )
