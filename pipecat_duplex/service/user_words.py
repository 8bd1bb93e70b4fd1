"""The user's words in Pipecat's context: each message where the voice was, no backchannel."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from pipecat.frames.frames import TranscriptionFrame
from pipecat.processors.aggregators.llm_context import LLMContextMessage

from pipecat_duplex.conversation.user_words import Fate, Stretch, UserWords
from pipecat_duplex.service.frames import HeardTranscriptionFrame

DEFAULT_TRANSCRIPT_SECS = 2.0
MAX_TRANSCRIPT_SECS = 5.0
LATER_SECS = 0.5
"""A transcript may come this much later than the latest of the last few."""

KEPT_DELAYS = 8
NEWS_SECS = 0.5


@dataclass(eq=False)
class Transcript:
    """A transcript and the stretch of voice that it describes.

    Parameters:
        frame: The transcript.
        stretch: The stretch.
        is_told: Whether the bot was told of it.
    """

    frame: TranscriptionFrame
    stretch: Stretch
    is_told: bool = False


class TranscriptDesk:
    """Where transcripts are looked at before they become messages.

    The turn strategies that the service recommends ask here, inside of the user aggregator; the
    service tells what became of the user's voice.

    Parameters:
        in_turn: Transcripts that the aggregator holds, and that become the turn's message.
        on_their_way: How many have been given to the aggregator again.
        has_stt: Whether somebody upstream transcribes the user.
        is_asked: Whether an aggregator's strategies ask here.
        has_message: Whether words of the turn are known.
        message_secs: When the last message's voice began, in seconds of the user's audio.
        has_inserted: Whether messages were put into the context that no LLM was run for.
    """

    def __init__(
        self,
        on_transcript: Callable[[str, float, float, str], Awaitable[None]],
        interrupt: Callable[[], Awaitable[bool]],
    ):
        """Initialize.

        Args:
            on_transcript: Called with each text that has found its place, the seconds of its
                voice, and ``turn`` or ``backchannel``.
            interrupt: Drops what is being answered to an earlier turn; tells whether there was
                anything.
        """
        self.voice = UserWords()
        self.in_turn: list[Transcript] = []
        self.on_their_way = 0
        self.has_inserted = False
        self.has_message = False
        self.message_secs = -math.inf
        self.transcribes = False
        self.has_stt = False
        self.is_asked = False
        self.transcript_secs = DEFAULT_TRANSCRIPT_SECS
        self.user_has_floor = False
        self.runs_llm = False
        self.context_is_ours = False
        self._delays_secs: deque[float] = deque(maxlen=KEPT_DELAYS)
        self._owes_answer = False
        self._is_patient = False
        self._news = asyncio.Event()
        self._on_transcript = on_transcript
        self.interrupt = interrupt

    @classmethod
    def of_nobody(cls) -> "TranscriptDesk":
        """Return a desk for strategies whose service has not announced itself yet."""

        async def tell(text: str, start_secs: float, end_secs: float, kind: str) -> None:
            pass

        async def interrupt() -> bool:
            return False

        return cls(tell, interrupt)

    def begin_session(self) -> None:
        """A session begins, at second 0."""
        self.voice = UserWords()
        self.user_has_floor = False
        self.message_secs = -math.inf

    def expect_transcripts(self, p99_secs: float | None) -> None:
        """Somebody upstream transcribes the user.

        Args:
            p99_secs: Seconds after which a transcript has come in 99 of 100 cases, if known.
        """
        self.transcribes = self.has_stt = True
        if p99_secs is not None:
            wait_secs = max(DEFAULT_TRANSCRIPT_SECS, p99_secs + 1.0)
            self.transcript_secs = min(wait_secs, MAX_TRANSCRIPT_SECS)

    def expect_words(self, within_secs: float) -> None:
        """The user's words come from beside the model.

        Args:
            within_secs: A voice whose words are not known so long after it had none.
        """
        self.transcribes = True
        self.transcript_secs = within_secs

    def turn_began(self) -> None:
        """The user's turn begins: its message is not known yet."""
        self.has_message = False

    def owe_answer(self, *, patiently: bool = False) -> None:
        """The agent gave up an answer of the LLM's, or has announced one.

        Args:
            patiently: Whether words are waited for as long as they may take.
        """
        self._owes_answer = True
        self._is_patient = patiently

    def take_owed(self) -> bool:
        """Whether the agent owes an answer; from now on it does not."""
        owes_answer, self._owes_answer = self._owes_answer, False
        self._is_patient = False
        return owes_answer and self.runs_llm

    @property
    def awaits_transcript(self) -> bool:
        """Whether words of the user's turn are still to come."""
        if self.on_their_way:
            return True
        return self.transcribes and self.voice.awaits_transcript(self._wait_secs)

    def awaited_secs(self, since_secs: float) -> float:
        """Return for how long the user spoke since a time, of what is not known in words yet."""
        return self.voice.awaited_secs(self._wait_secs, since_secs) if self.transcribes else 0.0

    @property
    def _wait_secs(self) -> float:
        """How long words are waited for: longer where those of this conversation came late."""
        if self._is_patient:
            return MAX_TRANSCRIPT_SECS
        late_secs = max(self._delays_secs, default=0.0) + LATER_SECS
        return max(self.transcript_secs, min(late_secs, MAX_TRANSCRIPT_SECS))

    @property
    def has_misplaced(self) -> bool:
        """Whether the agent has spoken since something that the aggregator holds was said."""
        return any(self.answers(transcript) for transcript in self.in_turn)

    @property
    def agent_goes_on(self) -> bool:
        """Whether the agent still says what belongs in front of the turn's message."""
        return any(self.voice.agent_goes_on(transcript.stretch) for transcript in self.in_turn)

    async def changed(self) -> None:
        """Wait until there may be news: a step, or a transcript."""
        try:
            await asyncio.wait_for(self._news.wait(), NEWS_SECS)
        except TimeoutError:
            pass

    def step(self, now_secs: float, *, user_has_floor: bool) -> None:
        """Follow a step.

        Args:
            now_secs: The time, in seconds of the user's audio.
            user_has_floor: Whether the user speaks, or a turn of theirs is open.
        """
        self.voice.advance(now_secs)
        self.user_has_floor = user_has_floor
        news, self._news = self._news, asyncio.Event()
        news.set()

    def place(self, frame: TranscriptionFrame) -> Transcript:
        """Find the voice that a transcript describes."""
        self.transcribes = True
        text = frame.text.strip()
        if isinstance(frame, HeardTranscriptionFrame):
            stretch = self.voice.place_at(text, frame.start_secs, frame.end_secs)
        else:
            self.has_stt = True
            stretch = self.voice.place(text, whole=frame.finalized)
            if stretch.end_secs is not None and len(stretch.texts) == 1:
                self._delays_secs.append(self.voice.now_secs - stretch.end_secs)
        return Transcript(frame, stretch)

    def fate(self, transcript: Transcript) -> Fate:
        """Return what became of a transcript's voice."""
        return self.voice.settle(transcript.stretch)

    def answers(self, transcript: Transcript) -> list[str]:
        """Return what the agent has said since; empty if the message's place is at the end."""
        return self.voice.answers_to(transcript.stretch)

    async def tell(self, transcript: Transcript, kind: str) -> None:
        """Tell the bot of a transcript that has found its place, once."""
        if transcript.is_told:
            return
        transcript.is_told = True
        stretch = transcript.stretch
        end_secs = self.voice.now_secs if stretch.end_secs is None else stretch.end_secs
        if kind == "turn":
            self.has_message = True
            self.message_secs = max(self.message_secs, stretch.start_secs)
        await self._on_transcript(transcript.frame.text, stretch.start_secs, end_secs, kind)


def insert_user_message(
    messages: list[LLMContextMessage], text: str, answers: list[str]
) -> list[LLMContextMessage]:
    """Put a user's message in front of what the agent has said since.

    Args:
        messages: The context's messages.
        text: What the user said.
        answers: What the agent has said since, oldest first.

    Returns:
        The messages with it. Text of the same turn is joined to a message that is there already.
    """
    place = len(messages)
    left = list(answers)
    for index in range(len(messages) - 1, -1, -1):
        if not left:
            break
        said = _assistant_text(messages[index])
        if said is None:
            continue
        matched = False
        while left and (left[-1] in said or (said and said in left[-1])):
            said = said.replace(left.pop(), "", 1).strip()
            matched = True
        if not matched:
            break
        place = index
    before = messages[place - 1] if place else None
    if isinstance(before, dict) and before.get("role") == "user":
        content = before.get("content")
        if isinstance(content, str):
            joined = {**before, "content": f"{content} {text}"}
            return [*messages[: place - 1], joined, *messages[place:]]  # pyright: ignore
    message = {"role": "user", "content": text}
    return [*messages[:place], message, *messages[place:]]  # pyright: ignore


def _assistant_text(message: LLMContextMessage) -> str | None:
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        return None
    content = message.get("content")
    return content.strip() if isinstance(content, str) and content.strip() else None
