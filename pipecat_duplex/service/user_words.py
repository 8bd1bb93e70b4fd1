"""The user's words in Pipecat's context: each message where the voice was, no backchannel."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from pipecat.frames.frames import TranscriptionFrame
from pipecat.processors.aggregators.llm_context import LLMContextMessage

from pipecat_duplex.conversation.user_words import Fate, Stretch, UserWords
from pipecat_duplex.service.frames import HeardTranscriptionFrame

DEFAULT_TRANSCRIPT_SECS = 2.0
MAX_TRANSCRIPT_SECS = 5.0
NEWS_SECS = 0.5


@dataclass(eq=False)
class Transcript:
    """A transcript and the stretch of voice that it describes.

    Parameters:
        frame: The transcript.
        stretch: The stretch.
    """

    frame: TranscriptionFrame
    stretch: Stretch


class TranscriptDesk:
    """Where transcripts are looked at before they become messages.

    The turn strategies that the service recommends ask here, inside of the user aggregator; the
    service tells what became of the user's voice.
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
        self.in_turn: list[TranscriptionFrame] = []
        self.on_their_way = 0
        self.has_message = False
        self.transcribes = False
        self.has_stt = False
        self.transcript_secs = DEFAULT_TRANSCRIPT_SECS
        self.user_has_floor = False
        self.runs_llm = False
        self.context_is_ours = False
        self._was_cut_off = False
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

    def agent_was_cut_off(self) -> None:
        """The agent gave up an answer of the LLM's."""
        self._was_cut_off = True

    def take_cut_off(self) -> bool:
        """Whether the agent gave up an answer since this was asked last, or the LLM ran."""
        was_cut_off, self._was_cut_off = self._was_cut_off, False
        return was_cut_off and self.runs_llm

    @property
    def awaits_transcript(self) -> bool:
        """Whether words of the user's turn are still to come."""
        if self.on_their_way:
            return True
        return self.transcribes and self.voice.awaits_transcript(self.transcript_secs)

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
        return Transcript(frame, stretch)

    def fate(self, transcript: Transcript) -> Fate:
        """Return what became of a transcript's voice."""
        return self.voice.settle(transcript.stretch)

    def answers(self, transcript: Transcript) -> list[str]:
        """Return what the agent has said since; empty if the message's place is at the end."""
        return self.voice.answers_to(transcript.stretch)

    async def tell(self, transcript: Transcript, kind: str) -> None:
        """Tell the bot of a transcript that has found its place."""
        stretch = transcript.stretch
        end_secs = self.voice.now_secs if stretch.end_secs is None else stretch.end_secs
        self.has_message = self.has_message or kind == "turn"
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
        matches = [answer for answer in left if answer in said or said in answer]
        if not matches:
            break
        left = [answer for answer in left if answer not in matches]
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
