"""A backend that speaks from a script: tests of a pipeline need no model.

It keeps the session contract to the letter, takes a fixed time a step, and can be told to stall or
to fail. Its agent hears only loudness: it replies when the user falls silent, and it yields when
the user speaks over it, or does not.
"""

import asyncio
import itertools
import re
import time
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    STEP_SECS,
    TEXT_PADDING,
    AtCapacity,
    CannotSay,
    CanSay,
    DuplexError,
    HeardWord,
    Said,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
    check_step_audio,
)
from pipecat_duplex.session.history import STREAMS, History, ResumeKey, check_tokens
from pipecat_duplex.session.streams import TextStreams, WordCutter

WORD_STEPS = 3
FINGERPRINT = "scripted"
CONTEXT_STEPS = 100
_USER_LEVEL_DB = -40.0


@dataclass(frozen=True)
class Script:
    """What the agent says and does.

    Parameters:
        opening: Words it says first, unasked.
        opening_step: When.
        replies: What it says each time the user falls silent, in turn; the last one repeats.
        reply_steps: Quiet steps after the user's voice before it replies.
        yield_steps: Steps of the user's voice over its own after which it falls silent, not
            counting short pauses; ``None`` never yields.
        step_secs: Computing time of a step.
        stalls: Extra computing time of single steps, by index.
        fail_step: The step at which the session fails.
        remembers: Whether steps come with tokens, from which a session can be restored.
        unsayable: Words, in lower case, that it does not have.
        hears: Returns the word that the user begins in a step of audio, if any. ``None`` is a
            backend without a recogniser.
        hearing_delay_steps: Steps after which such a word is known.
    """

    opening: str | None = None
    opening_step: int = 5
    replies: Sequence[str] = ()
    reply_steps: int = 3
    yield_steps: int | None = 4
    step_secs: float = 0.01
    stalls: Mapping[int, float] = field(default_factory=dict)
    fail_step: int | None = None
    remembers: bool = False
    unsayable: Collection[str] = ()
    hears: Callable[[np.ndarray], str | None] | None = None
    hearing_delay_steps: int = 6


class ScriptedBackend:
    """A :class:`~pipecat_duplex.session.DuplexBackend` whose agent follows a script."""

    def __init__(self, script: Script | None = None, *, slots: int = 1):
        """Initialize the backend.

        Args:
            script: What the agent of every session does.
            slots: Sessions at a time.
        """
        self._script = script or Script()
        self._slots = slots
        self._ids = itertools.count()
        self.sessions: list[ScriptedSession] = []

    async def open(self, config: SessionConfig) -> "ScriptedSession":
        """Begin a conversation.

        Args:
            config: Its limit is kept; sampling makes no difference.

        Raises:
            AtCapacity: Every slot is taken.
        """
        self.sessions = [session for session in self.sessions if not session.closed]
        if len(self.sessions) >= self._slots:
            raise AtCapacity(f"all {self._slots} slots are taken")
        session = ScriptedSession(f"scripted-{next(self._ids)}", self._script, config)
        self.sessions.append(session)
        return session

    async def close(self) -> None:
        """End every session."""
        for session in self.sessions:
            await session.close()


class ScriptedSession:
    """A conversation with a scripted agent."""

    def __init__(self, session_id: str, script: Script, config: SessionConfig | None = None):
        """Initialize the session.

        Args:
            session_id: Its name.
            script: What the agent does.
            config: Its limit is kept.
        """
        self._id = session_id
        self._config = config or SessionConfig()
        self._script = script
        self._agent = _ScriptedAgent(script)
        self._max_secs = self._config.max_secs
        self._sent = 0
        self._frames: asyncio.Queue[tuple[float, np.ndarray, np.ndarray | None] | None]
        self._frames = asyncio.Queue()
        self._follows = False
        self._cutters: dict[int, WordCutter] = {}
        self._streams = TextStreams()
        self._heard: deque[HeardWord] = deque()
        self.closed = False

    @property
    def id(self) -> str:
        """The session's name."""
        return self._id

    @property
    def config(self) -> SessionConfig:
        """What it was opened with."""
        return self._config

    @property
    def memory(self) -> ResumeKey | None:
        """Identifies which sessions can resume this one."""
        return ResumeKey(FINGERPRINT, CONTEXT_STEPS) if self._script.remembers else None

    @property
    def hearing_delay_steps(self) -> int | None:
        """Steps by which the user's words are behind the voice; None without a recogniser."""
        return None if self._script.hears is None else self._script.hearing_delay_steps

    @property
    def secs_left(self) -> float | None:
        """Audio that the session still takes; None is no limit."""
        return None if self._max_secs is None else self._max_secs - self._sent * STEP_SECS

    def send(self, pcm: np.ndarray) -> int:
        """Take the next step of user audio; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._check_open()
        check_step_audio(pcm)
        self._follows = False
        return self._queue(pcm)

    def follow(self, pcm: np.ndarray, tokens: np.ndarray) -> int:
        """Take a step that was taken elsewhere.

        See :class:`~pipecat_duplex.session.DuplexSession`.
        """
        self._check_open()
        check_step_audio(pcm)
        if not self._follows:
            raise DuplexError("steps that were taken elsewhere come after a history")
        check_tokens(tokens, text_tokens=100, audio_tokens=1000)
        return self._queue(pcm, tokens)

    def _queue(self, pcm: np.ndarray, tokens: np.ndarray | None = None) -> int:
        self._frames.put_nowait((time.monotonic(), pcm.copy(), tokens))
        self._sent += 1
        return self._sent - 1

    async def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps; see :class:`~pipecat_duplex.session.DuplexSession`."""
        for index in itertools.count():
            item = await self._frames.get()
            if item is None:
                return
            sent_secs, pcm, known = item
            if self._max_secs is not None and index * STEP_SECS >= self._max_secs:
                self.closed = True
                raise SessionEnded(self._id, f"it reached its limit of {self._max_secs:g} s")
            if index == self._script.fail_step:
                self.closed = True
                raise SessionEnded(self._id, "the script says so")
            started_secs = time.monotonic()
            await asyncio.sleep(self._script.step_secs + self._script.stalls.get(index, 0.0))
            spoken = self._agent.step(index, pcm)
            self._hear(index, pcm)
            if known is not None:
                self._agent.restore(known.tolist())
            timing = StepTiming(
                waited_secs=started_secs - sent_secs, compute_secs=time.monotonic() - started_secs
            )
            yield Step(
                index,
                spoken.pcm,
                spoken.token,
                spoken.piece,
                timing,
                spoken.utterance_id,
                self._agent.take_said(),
                spoken.tokens if self._script.remembers else None,
                spoken.wish,
                self._take_heard(index),
            )

    def _hear(self, index: int, pcm: np.ndarray) -> None:
        word = None if self._script.hears is None else self._script.hears(pcm)
        if word is not None:
            self._heard.append(HeardWord(word, index, index + 1))

    def _take_heard(self, index: int) -> tuple[HeardWord, ...]:
        heard: list[HeardWord] = []
        while self._heard and self._heard[0].end_step + self._script.hearing_delay_steps <= index:
            heard.append(self._heard.popleft())
        return tuple(heard)

    async def restore(self, history: History) -> None:
        """Go on with a conversation; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._check_open()
        if self._sent:
            raise DuplexError("a history is taken up before the first step, and once")
        history.check(FINGERPRINT, text_tokens=100, audio_tokens=1000)
        self._agent.restore(history.codes[:, -1].tolist())
        for place, pcm in enumerate(history.audio):
            self._hear(place - len(history.audio), pcm)
        self._follows = True

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        """Let the agent speak; see :class:`~pipecat_duplex.session.DuplexSession`."""
        if not isinstance(text, str):
            return await self._streams.say(self, text, cut_in=cut_in)
        self._check_open()
        words, unsayable = self._agent.known(text)
        if unsayable and not more:
            names = ", ".join(unsayable)
            text = f"the model does not have the words to say {names}"
            raise CannotSay(text, tuple(unsayable))
        if not words and not more:
            raise CannotSay(f"there are no words in {text!r}")
        number = self._agent.say([] if more else words, cut_in=cut_in, more=more)
        if more:
            self._cutters[number] = WordCutter()
            await self.say_more(number, text)
        return number

    async def can_say(self, text: str) -> CanSay:
        """Tell whether it has the words; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._check_open()
        words, unsayable = self._agent.known(text)
        if unsayable:
            return CanSay(tuple(unsayable), f"it does not have the words {', '.join(unsayable)}")
        return CanSay() if words else CanSay(reason=f"there are no words in {text!r}")

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        """Add to an utterance; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._check_open()
        cutter = self._cutters.get(utterance_id)
        if cutter is None:
            return
        whole = cutter.push(text) + ("" if more else cutter.end())
        self._agent.say_more(utterance_id, whole, more=more)
        if not more:
            del self._cutters[utterance_id]

    async def hold(self, held: bool = True) -> None:
        """Hold the script's words back; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._check_open()
        self._agent.held = held

    async def hush(self) -> None:
        """Drop the rest of all given words."""
        self._check_open()
        self._agent.hush()

    async def close(self) -> None:
        """End the session."""
        self._streams.close()
        if not self.closed:
            self.closed = True
            self._frames.put_nowait(None)

    def _check_open(self) -> None:
        if self.closed:
            raise SessionEnded(self._id, "the session is closed")


class _Spoken(NamedTuple):
    """The agent's side of a step."""

    token: int
    piece: str | None
    pcm: np.ndarray
    utterance_id: int | None
    tokens: np.ndarray
    wish: bool = False


@dataclass
class _Utterance:
    """Words on their way out; ``id`` is ``None`` for those of the script, which have a number."""

    words: list[str]
    id: int | None = None
    spoken: int = 0
    number: int = 0
    more: bool = False
    unsayable: tuple[str, ...] = ()


class _ScriptedAgent:
    """What the agent says in each step, given how loud the user is."""

    def __init__(self, script: Script):
        self._script = script
        self._replied = 0
        self._restored = False
        self._now: _Utterance | None = None
        self._to_say: deque[_Utterance] = deque()
        self._asked = 0
        self._said: list[Said] = []
        self._word_step = 0
        self._user_steps = 0
        self._over_steps = 0
        self._quiet_steps = 0
        self._wish = False
        self.held = False

    def step(self, index: int, pcm: np.ndarray) -> _Spoken:
        self._wish = False
        self._listen(pcm)
        if index == self._script.opening_step and self._script.opening and not self._restored:
            self._begin(self._scripted(1))
        ready = next((each for each in self._to_say if each.words or not each.more), None)
        if self._now is None and ready is not None:
            self._to_say.remove(ready)
            self._begin(ready)
            if not ready.words:
                self._stop()
        return self._speak(index)

    def known(self, text: str) -> tuple[list[str], list[str]]:
        """Return the words of a text that it has, and those that it lacks."""
        words, unsayable = [], []
        for word in text.split():
            lacks = re.sub(r"\W", "", word.lower()) in self._script.unsayable
            (unsayable if lacks else words).append(word)
        return words, unsayable

    def say(self, words: list[str], *, cut_in: bool, more: bool) -> int:
        if cut_in:
            self.hush()
            self._stop()
        self._asked += 1
        self._to_say.append(_Utterance(words, self._asked, more=more))
        return self._asked

    def say_more(self, utterance_id: int, text: str, *, more: bool) -> None:
        for utterance in (self._now, *self._to_say):
            if utterance is not None and utterance.id == utterance_id:
                words, unsayable = self.known(text)
                utterance.words += words
                utterance.unsayable += tuple(unsayable)
                utterance.more = more

    def hush(self) -> None:
        if self._now is not None and self._now.id is not None:
            self._stop()
        while self._to_say:
            self._tell(self._to_say.popleft())

    def restore(self, tokens: list[int]) -> None:
        """Go on after a step with these tokens."""
        self._restored = True
        _, number, spoken, self._word_step, self._replied, self._quiet_steps, *_ = tokens
        self._now = None
        if number:
            self._now = self._scripted(number)
            self._now.spoken = spoken

    def _scripted(self, number: int) -> _Utterance:
        """Return an utterance of the script: 1 is the opening, and the replies follow."""
        texts = [self._script.opening or "", *self._script.replies]
        return _Utterance(texts[number - 1].split(), number=number)

    def _tokens(self, token: int) -> np.ndarray:
        """Return the tokens of a step: all that there is to be restored."""
        tokens = np.zeros(STREAMS, np.int32)
        now = self._now
        state = (0, 0) if now is None else (now.number, now.spoken)
        quiet_steps = min(self._quiet_steps, 999)
        tokens[:6] = (token, *state, self._word_step, self._replied, quiet_steps)
        return tokens

    def take_said(self) -> tuple[Said, ...]:
        said, self._said = self._said, []
        return tuple(said)

    def _begin(self, utterance: _Utterance) -> None:
        if self.held and utterance.id is None:
            self._wish = self._now is None
            return
        self._stop()
        self._now = utterance

    def _stop(self) -> None:
        if self._now is not None:
            self._tell(self._now)
        self._now = None
        self._word_step = 0

    def _tell(self, utterance: _Utterance) -> None:
        if utterance.id is not None:
            spoken = " ".join(utterance.words[: utterance.spoken])
            unspoken = " ".join(utterance.words[utterance.spoken :])
            self._said.append(Said(utterance.id, spoken, unspoken, utterance.unsayable))

    def _listen(self, pcm: np.ndarray) -> None:
        user = level_db(pcm) > _USER_LEVEL_DB
        if user and self._now:
            self._over_steps += 1
        elif not self._now or self._quiet_steps >= self._script.reply_steps:
            self._over_steps = 0
        if self._script.yield_steps is not None and self._over_steps >= self._script.yield_steps:
            self.hush()
            self._stop()
        if user:
            self._user_steps += 1
            self._quiet_steps = 0
            return
        self._quiet_steps += 1
        if (
            self._quiet_steps == self._script.reply_steps
            and self._user_steps
            and self._script.replies
        ):
            self._user_steps = 0
            if not self._now:
                self._replied = min(self._replied + 1, len(self._script.replies))
                self._begin(self._scripted(1 + self._replied))

    def _speak(self, index: int) -> _Spoken:
        utterance = self._now
        begins = self._word_step == 0
        if utterance is not None and begins and utterance.spoken == len(utterance.words):
            if not utterance.more:
                self._stop()
            utterance = None  # It waits for more words, or has just come to its end.
        if utterance is None:
            silence = np.zeros(STEP_SAMPLES, np.float32)
            tokens = self._tokens(TEXT_PADDING)
            return _Spoken(TEXT_PADDING, None, silence, None, tokens, self._wish)
        utterance.spoken += begins
        word = utterance.words[utterance.spoken - 1]
        pcm = _tone(index, 180 + 17 * (len(word) + ord(word[0]) % 7))
        self._word_step = (self._word_step + 1) % WORD_STEPS
        is_last = utterance.spoken == len(utterance.words) and not utterance.more
        if self._word_step == 0 and is_last:
            self._stop()
        if not begins:
            return _Spoken(TEXT_PADDING, None, pcm, None, self._tokens(TEXT_PADDING))
        return _Spoken(10, f"▁{word}", pcm, utterance.id, self._tokens(10))


def _tone(index: int, hz: float) -> np.ndarray:
    secs = (index * STEP_SAMPLES + np.arange(STEP_SAMPLES)) / SAMPLE_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * hz * secs)).astype(np.float32)
