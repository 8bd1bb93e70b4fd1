"""The turn strategies that the service recommends to Pipecat's user aggregator.

The service proposes turns; the strategies take its proposals. They also see each transcript inside
of the aggregator, and take back what is no message of this turn.
"""

import asyncio
from dataclasses import dataclass
from typing import cast

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMMessagesTransformFrame,
    LLMRunFrame,
    LLMServiceMetadataFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from pipecat.turns.empty_user_turn import DEFAULT_EMPTY_USER_TURN_INTERRUPTED_PROMPT
from pipecat.turns.types import ProcessFrameResult
from pipecat.turns.user_start import ExternalUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies

from pipecat_duplex.conversation.user_words import Fate
from pipecat_duplex.service.frames import UserBackchannelFrame
from pipecat_duplex.service.user_words import Transcript, TranscriptDesk, insert_user_message

INTERRUPTION_SECS = 0.5


class DuplexTurnStartStrategy(ExternalUserTurnStartStrategy):
    """Opens a turn when the service proposes one, and puts each transcript in its place."""

    def __init__(self, desk: TranscriptDesk | None = None):
        """Initialize.

        Args:
            desk: Knows what became of the user's voice. Without one, the service's is taken.
        """
        super().__init__(enable_interruptions=False)
        self._desk = desk or TranscriptDesk.of_nobody()
        self._open: list[Transcript] = []
        self._again: dict[int, Transcript] = {}
        self._turn_is_open = False

    async def handle_user_turn_started(self):
        """Take note that a turn has begun."""
        await super().handle_user_turn_started()
        self._turn_is_open = True

    async def handle_user_turn_stopped(self):
        """Take note that the turn's words are a message now."""
        await super().handle_user_turn_stopped()
        self._turn_is_open = False
        if self._desk.in_turn:
            self._desk.take_owed()  # The LLM is run for its words.
        self._desk.in_turn.clear()

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Process a frame.

        Args:
            frame: The frame to be analyzed.

        Returns:
            STOP if the turn started, CONTINUE otherwise.
        """
        self._desk = _desk_of(frame) or self._desk
        self._desk.is_asked = True
        if isinstance(frame, InterruptionFrame):
            await self._give_lost_again()
        if self._open:
            await self._settle_open()
        if isinstance(frame, TranscriptionFrame):
            if frame.text.strip():
                await self._take(frame)
                return ProcessFrameResult.CONTINUE
        elif self._desk.has_misplaced:
            await self._take_back()
        return await super().process_frame(frame)

    async def _take(self, frame: TranscriptionFrame):
        transcript = self._again.pop(frame.id, None)
        self._desk.on_their_way = len(self._again)
        if transcript is None:
            transcript = self._desk.place(frame)
        fate = self._desk.fate(transcript)
        if fate is Fate.TURN and self._is_for_this_turn(transcript):
            await self._keep(transcript)
            await self._desk.tell(transcript, "turn")
            return
        await self._take_back()
        if fate in (Fate.OPEN, Fate.SHORT):
            self._open.append(transcript)
        else:
            await self._settle(transcript, fate)

    def _is_for_this_turn(self, transcript: Transcript) -> bool:
        return not self._desk.context_is_ours and not self._desk.answers(transcript)

    async def _keep(self, transcript: Transcript):
        """Leave a transcript to the aggregator; one that comes after its turn opens another."""
        self._desk.in_turn.append(transcript)
        if not self._turn_is_open:
            await self.trigger_user_turn_started(enable_interruptions=False)

    async def _take_back(self):
        """Empty the aggregator, and look again at what it held."""
        await self.trigger_reset_aggregation()
        kept, self._desk.in_turn = self._desk.in_turn, []
        for transcript in kept:
            await self._give_again(transcript)

    async def _give_again(self, transcript: Transcript):
        self._again[transcript.frame.id] = transcript
        self._desk.on_their_way = len(self._again)
        await self.push_frame(transcript.frame)

    async def _give_lost_again(self):
        """Give again what an interruption has swept out of the aggregator's queue."""
        for transcript in list(self._again.values()):
            await self.push_frame(transcript.frame)

    async def _settle_open(self):
        """Look again at transcripts whose voice was not decided yet."""
        waiting, self._open = self._open, []
        for transcript in waiting:
            fate = self._desk.fate(transcript)
            if fate is Fate.OPEN:
                self._open.append(transcript)
            else:
                await self._settle(transcript, fate)

    async def _settle(self, transcript: Transcript, fate: Fate):
        frame = transcript.frame
        if fate is Fate.BACKCHANNEL:
            await self._desk.tell(transcript, "backchannel")
            await self.push_frame(UserBackchannelFrame(frame.text, frame.user_id, frame.timestamp))
            return
        await self._desk.tell(transcript, "turn")
        if self._is_for_this_turn(transcript):
            await self._give_again(transcript)
        else:
            await self._insert(transcript)

    async def _insert(self, transcript: Transcript):
        """Put a message in front of what the agent has said since.

        The end of the turn runs the LLM, once for all of its messages.
        """
        answers, text = self._desk.answers(transcript), transcript.frame.text.strip()
        frame = LLMMessagesTransformFrame(
            lambda messages: insert_user_message(messages, text, answers), run_llm=False
        )
        frame.interruptible = False
        await self.push_frame(frame)
        self._desk.has_inserted = self._desk.runs_llm


class DuplexTurnStopStrategy(BaseUserTurnStopStrategy):
    """Ends a turn when the service proposes it, once the turn's words are there."""

    def __init__(self, desk: TranscriptDesk | None = None):
        """Initialize.

        Args:
            desk: Knows which words are still to come. Without one, the service's is taken.
        """
        super().__init__()
        self._desk = desk or TranscriptDesk.of_nobody()
        self._turn_is_open = False
        self._is_over = False
        self._interrupted = asyncio.Event()
        self._task: asyncio.Task | None = None
        self._unanswered = 0

    @property
    def resolves_proposed_turn_stop_frames(self) -> bool:
        """Whether this strategy resolves proposals into turn stops."""
        return True

    async def cleanup(self):
        """Stop waiting."""
        await super().cleanup()
        if self._task:
            await self.cancel_task(self._task)
            self._task = None

    async def handle_user_turn_started(self):
        """Take note that a turn has begun."""
        await super().handle_user_turn_started()
        self._turn_is_open = True
        self._is_over = False

    async def handle_user_turn_stopped(self):
        """Take note that the turn is over."""
        await super().handle_user_turn_stopped()
        self._turn_is_open = False

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Process a frame.

        Args:
            frame: The frame to be analyzed.

        Returns:
            CONTINUE, always.
        """
        self._desk = _desk_of(frame) or self._desk
        if isinstance(frame, ProposedUserStartedSpeakingFrame):
            self._is_over = False
        elif isinstance(frame, ProposedUserStoppedSpeakingFrame):
            await self._end()
        elif isinstance(frame, InterruptionFrame):
            self._interrupted.set()
        elif not self._desk.user_has_floor and (
            isinstance(frame, TranscriptionFrame) or self._desk.has_inserted
        ):
            await self._end()
        return ProcessFrameResult.CONTINUE

    async def _end(self):
        if not (self._turn_is_open or self._desk.has_inserted):
            return
        self._is_over = True
        if self._desk.context_is_ours or not self._desk.transcribes:
            await self.trigger_user_turn_stopped()
        elif self._task is None or self._task.done():
            # In a task of its own: the interruption cuts off what the aggregator is doing.
            self._task = self.create_task(self._end_with_words(), f"{self}::end_with_words")

    async def _end_with_words(self):
        desk, had_turn = self._desk, self._turn_is_open
        await self._wait_for_words()
        if self._is_over and (desk.in_turn or desk.has_inserted):
            await self._interrupt()
            await self._wait_for_words()  # The agent's unfinished message may be in front now.
        if not self._is_over:
            return
        words = list(desk.in_turn)
        if self._turn_is_open:  # The aggregator ends one by itself after a while.
            await self.trigger_user_turn_stopped()
            # They are a message now, also if somebody is heard and the turn goes on.
            desk.in_turn = [each for each in desk.in_turn if each not in words]
            if self._turn_is_open and not words:
                return
        if words or desk.has_inserted:
            self._unanswered = 0
            desk.take_owed()
            if not words:
                await self.push_frame(LLMRunFrame())
            desk.has_inserted = False
        elif had_turn:
            await self._answer_nothing()

    async def _wait_for_words(self):
        desk = self._desk
        while self._is_over:
            agent_goes_on = desk.agent_goes_on
            if not (agent_goes_on or desk.awaits_transcript or desk.has_misplaced):
                return
            await desk.changed()
            if agent_goes_on:
                await desk.changed()  # What it has said is on its way into the context.

    async def _interrupt(self):
        """Let go of the answer to an earlier turn, before this one is answered."""
        self._interrupted.clear()
        if not await self._desk.interrupt():
            return
        try:
            await asyncio.wait_for(self._interrupted.wait(), INTERRUPTION_SECS)
        except TimeoutError:
            logger.debug(f"{self}: the interruption has not come by")

    async def _answer_nothing(self):
        """Ask again where the agent owes an answer to a voice that nobody understood."""
        if not self._desk.take_owed() or self._unanswered:
            return
        self._unanswered += 1
        prompt = DEFAULT_EMPTY_USER_TURN_INTERRUPTED_PROMPT
        message = cast(LLMContextMessage, {"role": "developer", "content": prompt})
        await self.push_frame(LLMMessagesAppendFrame([message], run_llm=True))


@dataclass
class DuplexUserTurnStrategies(ExternalUserTurnStrategies):
    """The service opens and closes the user's turns, and the model yields by itself.

    An aggregator without strategies gets the same from the service once the pipeline runs. Until
    then Pipecat's default loads a turn model for each pipeline: 11 MB, and 45 ms of the event
    loop. Give them to the aggregator where a process holds many conversations::

        user, assistant = LLMContextAggregatorPair(
            LLMContext(),
            user_params=LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies()),
        )

    Parameters:
        desk: The service's, which knows what became of the user's voice. Strategies without one
            get it from the service once the pipeline runs.
        enable_interruptions: Always False: the model decides when it yields.
    """

    enable_interruptions: bool = False
    desk: TranscriptDesk | None = None

    def __post_init__(self):
        self.start = [DuplexTurnStartStrategy(self.desk)]
        self.stop = [DuplexTurnStopStrategy(self.desk)]


def _desk_of(frame: Frame) -> TranscriptDesk | None:
    """Return the desk of the service that announces itself with this frame."""
    if not isinstance(frame, LLMServiceMetadataFrame):
        return None
    strategies = frame.user_turn_strategies
    return strategies.desk if isinstance(strategies, DuplexUserTurnStrategies) else None
