"""An LLM upstream, which gives the words, while the model here keeps the floor."""

import asyncio
import math
from collections.abc import Coroutine, Iterator, Sequence
from typing import Literal, Protocol

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    FunctionCallCancelFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    STTMetadataFrame,
    TranscriptionFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import LLMService

from pipecat_duplex.conversation.turn_end import TurnEnd
from pipecat_duplex.conversation.turns import (
    AgentStarted,
    AgentStopped,
    Backchannel,
    TurnEvent,
    UserStarted,
    UserStopped,
    Yielded,
)
from pipecat_duplex.conversation.user_words import Fate
from pipecat_duplex.service.filler import Filler
from pipecat_duplex.service.frames import HeardTranscriptionFrame
from pipecat_duplex.service.given_words import GivenWords
from pipecat_duplex.service.heard_speech import HeardTranscripts
from pipecat_duplex.service.upstream_words import Mouth, UpstreamWords
from pipecat_duplex.service.user_words import TranscriptDesk
from pipecat_duplex.session import STEP_SECS, DuplexSession, Said, Step

Words = Literal["own", "given", "both"]

MIN_VOICE_SECS = 0.5
"""A shorter voice may be a cough, or "mm": no filler before its words are known."""

_RESPONSE = (LLMFullResponseStartFrame, LLMTextFrame, LLMFullResponseEndFrame)


class Speaking(Protocol):
    """The service that speaks, as far as it matters here."""

    @property
    def given_words(self) -> GivenWords:
        """What the agent was asked to say."""
        ...

    @property
    def session(self) -> DuplexSession | None:
        """The session that is open."""
        ...

    @property
    def utterance_id(self) -> int | None:
        """The utterance of given words that was heard last."""
        ...

    @property
    def agent_is_speaking(self) -> bool:
        """Whether an utterance of the agent is open."""
        ...

    @property
    def user_turn_is_open(self) -> bool:
        """Whether a turn of the user was proposed, and not its end."""
        ...

    async def end_user_turn(self) -> None:
        """Propose the end of the user's turn."""
        ...

    async def say_filler(self, text: str) -> int | None:
        """Begin an answer with a filler; returns its utterance, or pushes an error."""
        ...

    async def tell_said(self, ended: Sequence[Said]) -> None:
        """Tell what became of given words."""
        ...

    async def tell_transcript(
        self, text: str, start_secs: float, end_secs: float, kind: str
    ) -> None:
        """Tell what the user said."""
        ...

    async def broadcast_interruption(self) -> None:
        """Interrupt the LLM."""
        ...

    async def push_frame(self, frame: Frame, direction: FrameDirection = ...) -> None:
        """Push a frame."""
        ...

    async def push_error(self, error_msg: str, exception: Exception | None = None) -> None:
        """Push an error frame."""
        ...

    def create_task(self, coroutine: Coroutine, name: str | None = None) -> asyncio.Task:
        """Run something beside."""
        ...

    async def cancel_task(self, task: asyncio.Task) -> None:
        """End it."""
        ...


def llm_upstream_of(service: FrameProcessor) -> bool:
    """Whether an LLM stands before a processor in its pipeline."""
    before = service.previous
    while before is not None:
        if any(isinstance(each, LLMService) for each in with_parts(before)):
            return True
        before = before.previous
    return False


def with_parts(processor: FrameProcessor) -> Iterator[FrameProcessor]:
    """Iterate over a processor and all that it is made of."""
    yield processor
    for part in processor.processors:
        yield from with_parts(part)


class LlmUpstream:
    """What the service knows of the LLM upstream, of the user's words, and of who gives the words.

    Parameters:
        words: Whose words the agent says.
        floor: What became of the user's voice, and the transcripts of it.
        given: The LLM's words on their way to the session.
    """

    def __init__(self, service: Speaking, patience_secs: float):
        """Initialize.

        Args:
            service: The service that speaks.
            patience_secs: Silence after which the user's turn is over without a wish.
        """
        self._service = service
        self.words: Words = "own"
        self.given = UpstreamWords(service.given_words, self._tell_error)
        self.desk = TranscriptDesk(self._tell_transcript, self._drop_stale)
        self.heard = HeardTranscripts(self.desk, self._take_heard)
        self.filler = Filler()
        self.turn_end = TurnEnd(max(1, round(patience_secs / STEP_SECS)))
        self._tools: set[str] = set()
        self._own_warned = False
        self._wished = False
        self._filled_secs = -math.inf
        self._task: asyncio.Task | None = None

    @property
    def keeps_own_words_back(self) -> bool:
        """Whether the model's own words are never said."""
        return self.words == "given"

    @property
    def waits_for_wish(self) -> bool:
        """Whether the user's turn is over when the model wishes to speak."""
        return self.words != "own"

    def set_words(self, words: Words, mouth: Mouth) -> None:
        """Choose whose words the agent says, and who speaks them."""
        self.words = words
        self.given.mouth = mouth
        self.desk.runs_llm = words != "own"

    def start(self) -> None:
        """Begin to hand over the LLM's words."""
        if self._task is None:
            self._task = self._service.create_task(self.given.run(), "upstream_words")

    async def stop(self) -> None:
        """Hand over nothing any more."""
        task, self._task = self._task, None
        if task is not None:
            await self._service.cancel_task(task)

    def begin_session(self) -> None:
        """A session begins."""
        self._filled_secs = -math.inf
        self.desk.begin_session()
        self.heard.begin_session()
        self.given.begin_session()

    async def finish(self, max_secs: float) -> None:
        """Wait until the session has taken all that the LLM wrote, but not longer."""
        try:
            await asyncio.wait_for(self.given.handed_over.wait(), max_secs)
        except TimeoutError:
            logger.debug(f"{self._service}: words of the LLM were left")

    def writes(self, number: int | None) -> bool:
        """Whether an utterance is written by others, so that no LLM's brackets belong around it."""
        return self.words == "given" or self.given.gave(number) or self.filler.is_open(number)

    def gave(self, number: int | None) -> bool:
        """Whether an utterance's words came from the LLM upstream."""
        return self.given.gave(number)

    def is_open(self, number: int | None) -> bool:
        """Whether more words of an utterance may come."""
        return self.given.is_open(number)

    def turn_began(self) -> None:
        """The user's turn begins."""
        self.turn_end.begin()
        self.desk.turn_began()
        self.filler.answered()
        self.filler.end_message()

    def turn_ended(self) -> None:
        """The user's turn is over."""
        if self.waits_for_wish:
            self.filler.turn_ended(wished=self._wished)

    #
    # frames from upstream
    #

    async def take(self, frame: Frame) -> bool:
        """Look at a frame that comes from upstream; tell whether it goes no further."""
        if isinstance(frame, STTMetadataFrame):
            self.desk.expect_transcripts(frame.ttfs_p99_latency)
        elif isinstance(frame, FunctionCallsStartedFrame):
            self._tools.update(call.tool_call_id for call in frame.function_calls)
        elif isinstance(frame, FunctionCallResultFrame):
            if frame.properties is None or frame.properties.is_final:
                self._tools.discard(frame.tool_call_id)
        elif isinstance(frame, FunctionCallCancelFrame):
            self._tools.discard(frame.tool_call_id)
        elif isinstance(frame, TranscriptionFrame):
            await self._take_transcript(frame)
        elif self.words == "own":
            return self._leave_words(frame)
        else:
            return self.given.take(frame)
        return False

    def _leave_words(self, frame: Frame) -> bool:
        if not isinstance(frame, _RESPONSE) or frame.skip_tts:
            return False
        if not self._own_warned:
            self._own_warned = True
            logger.warning(
                f"{self._service}: an LLM upstream writes words that nobody says: "
                "set words to 'given' or 'both'"
            )
        return True

    async def _take_transcript(self, frame: TranscriptionFrame) -> None:
        """Tell of a transcript that no aggregator has taken."""
        transcript = self.desk.place(frame)
        is_backchannel = self.desk.fate(transcript) is Fate.BACKCHANNEL
        await self.desk.tell(transcript, "backchannel" if is_backchannel else "turn")

    async def _take_heard(self, frame: HeardTranscriptionFrame) -> None:
        """Give a transcript of our own to the aggregator, or tell of it if none asks here."""
        if not self.desk.is_asked:
            await self._take_transcript(frame)
        await self._service.push_frame(frame, FrameDirection.UPSTREAM)

    #
    # steps
    #

    def hear(self, event: TurnEvent, text: str) -> None:
        """Take note of what happened on the floor.

        Args:
            event: What happened.
            text: What was heard of the agent's utterance, if it stopped.
        """
        voice = self.desk.voice
        match event:
            case UserStarted():
                voice.user_started(event.time_secs, over_agent=event.over_agent)
            case UserStopped():
                voice.user_stopped(event.time_secs)
            case AgentStarted():
                voice.agent_started(event.time_secs)
                self.filler.answered()
                if not self.filler.is_open(self._service.utterance_id):
                    self.filler.end_message()
            case Backchannel():
                voice.talked_through()
            case Yielded():
                voice.user_has_floor()
            case AgentStopped():
                goes_on = not event.yielded and self.filler.is_open(self._service.utterance_id)
                voice.agent_stopped(text, goes_on=goes_on)

    async def step(
        self, step: Step, *, user_speaking: bool, user_begins: bool, agent_speaking: bool
    ) -> None:
        """Follow a step, after its events.

        Args:
            step: The step.
            user_speaking: Whether the user speaks.
            user_begins: Whether they may just have begun to.
            agent_speaking: Whether the agent speaks.
        """
        service = self._service
        has_floor = user_speaking or service.user_turn_is_open
        self.desk.step((step.index + 1) * STEP_SECS, user_has_floor=has_floor)
        await self.heard.step(step, service.session)
        if self.waits_for_wish and service.user_turn_is_open:
            self._wished = step.wish
            wish = step.wish or agent_speaking
            if self.turn_end.step(user_speaking=user_speaking, wish=wish):
                await service.end_user_turn()
        has_floor = user_speaking or service.user_turn_is_open
        waits = has_floor or self.desk.awaits_transcript
        says_filler = self.filler.is_open(service.utterance_id)
        self.given.set_floor(is_free=not waits or (agent_speaking and not says_filler))
        if not (user_speaking or user_begins or agent_speaking or service.user_turn_is_open):
            await self._fill()

    @property
    def _is_at_work(self) -> bool:
        """Whether the LLM writes, or one of its functions runs."""
        return self.given.is_writing or bool(self._tools)

    @property
    def _may_fill(self) -> bool:
        """Whether there will be an answer, as far as anybody can know, and to a new message."""
        if self.desk.awaits_transcript:
            # The model would answer. What is at work is an earlier answer, which the words that
            # are still to come may call off.
            voice_secs = self.desk.awaited_secs(self._filled_secs)
            was_said = self.filler.wished and voice_secs >= MIN_VOICE_SECS
            return was_said and not self._is_at_work
        is_thinking = self.desk.has_message or self._is_at_work
        return is_thinking and self.desk.message_secs > self._filled_secs

    async def _fill(self) -> None:
        if self.given.has_begun or self.given.mouth.has_unspoken:
            self.filler.answered()
        awaits_words = self.desk.awaits_transcript
        if not (awaits_words or self.desk.has_message or self._is_at_work):
            self.filler.end_message()
        text = self.filler.step(is_thinking=self._may_fill)
        if text is not None:
            self._filled_secs = self.desk.voice.now_secs
            self.filler.begin_message(await self._service.say_filler(text))
            if awaits_words:
                self.desk.owe_answer(patiently=True)

    def message_ended(self) -> None:
        """What the agent has said is a message in the context, and goes on no more."""
        self.filler.end_message()
        self.desk.voice.message_ended()

    #
    # what is not said
    #

    async def cut_off(self) -> None:
        """The agent gave up the floor, or was interrupted: the rest of the answer is dropped."""
        if self.given.is_writing or self.given.gave(self._service.utterance_id):
            self.desk.owe_answer()
        self.message_ended()
        await self._tell_unsaid(self.given.drop())

    async def _drop_stale(self) -> bool:
        """Drop the answer to an earlier turn that nobody has heard; tell whether there was one."""
        service = self._service
        if service.agent_is_speaking:
            return False
        is_given = self.given.mouth.has_unspoken and not self.filler.has_message
        if not (self._is_at_work or is_given):
            return False
        unsaid = self.given.drop()
        self._tools.clear()
        self.message_ended()
        await self.given.mouth.hush()
        await self._tell_unsaid(unsaid)
        await service.broadcast_interruption()
        return True

    async def _tell_unsaid(self, texts: list[str]) -> None:
        for text in texts:
            await self._service.tell_said([Said(0, "", text)])

    async def _tell_error(self, text: str, error: Exception) -> None:
        await self._service.push_error(f"Cannot say {text!r}: {error}", exception=error)

    async def _tell_transcript(
        self, text: str, start_secs: float, end_secs: float, kind: str
    ) -> None:
        await self._service.tell_transcript(text, start_secs, end_secs, kind)
