"""Who holds the floor: one observation a step in, turn events out.

The tracker only watches. It never gates what the model hears, and it decides nothing for the
model: it names what the model did.
"""

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum, auto

from pipecat_duplex.session import STEP_SECS


class UserVoice(Enum):
    """What a voice activity detector says of the user in one step.

    Attributes:
        QUIET: No voice.
        STARTING: Voice, not yet long enough to count.
        SPEAKING: Voice.
        STOPPING: Quiet, not yet long enough to count.
    """

    QUIET = auto()
    STARTING = auto()
    SPEAKING = auto()
    STOPPING = auto()


@dataclass(frozen=True)
class TurnSettings:
    """Levels and times that decide when a voice starts and stops.

    Parameters:
        open_level_db: Agent audio above this level (dBFS, RMS of a step) opens an utterance.
        close_level_db: Agent audio below this level counts as silence.
        agent_stop_secs: Silence that ends an agent utterance.
        yield_stop_secs: Silence that ends it when the user has spoken over it.
        yield_window_secs: The agent yielded if it falls silent at most this long after the user's
            voice; if it is still speaking then, the user's speech was a backchannel.
        agent_backchannel_secs: Agent speech that begins inside the user's and is shorter than
            this is the agent's own backchannel: its end is not a yield.
        mime_stop_secs: Where a TTS speaks: silence of the model, which believes that it speaks,
            that gives up the floor when the user speaks over the TTS.
        wish_patience_secs: Where an LLM gives the words: silence after which the user's turn is
            over, though the model has not wished to speak.
        longest_overlap_secs: After so much voice of the user's over given words, the agent yields,
            though the model goes on. ``math.inf`` leaves it to the model, as its own words are.
    """

    open_level_db: float = -45.0
    close_level_db: float = -50.0
    agent_stop_secs: float = 0.48
    yield_stop_secs: float = 0.32
    yield_window_secs: float = 0.8
    agent_backchannel_secs: float = 1.0
    mime_stop_secs: float = 0.08
    wish_patience_secs: float = 1.6
    longest_overlap_secs: float = 1.0


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """Something that happened on the floor.

    Parameters:
        step_index: The step in which it was noticed.
        time_secs: When it happened, in seconds of the user's audio.
    """

    step_index: int
    time_secs: float


@dataclass(frozen=True, slots=True)
class UserStarted(TurnEvent):
    """The user began to speak.

    Parameters:
        voice_secs: Voice that had been heard when this was noticed.
        over_agent: Whether the agent was speaking.
    """

    voice_secs: float
    over_agent: bool


@dataclass(frozen=True, slots=True)
class UserStopped(TurnEvent):
    """The user fell silent.

    Parameters:
        quiet_secs: Silence that had passed when this was noticed.
    """

    quiet_secs: float


@dataclass(frozen=True, slots=True)
class AgentStarted(TurnEvent):
    """The agent began an utterance.

    Parameters:
        over_user: Whether the user was speaking.
    """

    over_user: bool


@dataclass(frozen=True, slots=True)
class AgentStopped(TurnEvent):
    """The agent's utterance is over.

    Parameters:
        yielded: Whether it gave up the floor to the user; :class:`Yielded` comes just before.
    """

    yielded: bool


@dataclass(frozen=True, slots=True)
class Yielded(TurnEvent):
    """The user spoke over the agent, and the model itself fell silent.

    Parameters:
        delay_secs: From the user's first sound over the agent to the agent's silence.
        is_cut: Whether its sound was cut off from outside, perhaps within a word.
    """

    delay_secs: float
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Backchannel(TurnEvent):
    """The user spoke over the agent, and the agent went on.

    Parameters:
        duration_secs: How long the user spoke.
    """

    duration_secs: float


# A detector is sure of a voice only some steps after its first sound. The sound is searched for in
# this many steps of the user's level; a pause of so many (a "p" or "t" is one) does not end it.
ONSET_STEPS = 10
ONSET_PAUSE_STEPS = 3
ONSET_BELOW_PEAK_DB = 35.0
ONSET_ABOVE_FLOOR_DB = 8.0

RESUME_QUIET_STEPS = 2
"""An agent that fell silent for so long under the user's voice, and speaks after it, answers.

Many pauses inside an utterance are as short, but few of them begin under a user's voice and last
until it is over.
"""

BRIEF_VOICE_STEPS = 3
"""A voice too short for the detector to be sure of ("stop") counts if an answer follows it."""


@dataclass(slots=True)
class _Overlap:
    """The user's speech over the agent.

    Parameters:
        first_step: The first step with the user's voice.
        last_step: The last one.
        voice_steps: Steps with it.
    """

    first_step: int
    last_step: int
    voice_steps: int = 1


def _steps(secs: float) -> int:
    return max(1, round(secs / STEP_SECS))


class TurnTracker:
    """Turns one observation a step into turn events.

    Events come in pairs: every stop follows a start, and :meth:`finish` closes what is open. An
    overlap ends as a yield or as a backchannel, or as neither if the agent had already finished.
    """

    def __init__(self, settings: TurnSettings | None = None):
        """Initialize the tracker.

        Args:
            settings: Levels and times.
        """
        settings = settings or TurnSettings()
        self._open_level_db = settings.open_level_db
        self._close_level_db = settings.close_level_db
        self._agent_stop_steps = _steps(settings.agent_stop_secs)
        self._yield_stop_steps = _steps(settings.yield_stop_secs)
        self._yield_window_steps = _steps(settings.yield_window_secs)
        self._agent_backchannel_steps = _steps(settings.agent_backchannel_secs)
        self._longest_overlap_secs = settings.longest_overlap_secs

        self._last_step = -1
        self._user_speaking = False
        self._user_voice = UserVoice.QUIET
        self._user_levels_db: deque[float] = deque(maxlen=ONSET_STEPS)
        self._stopping_steps = 0
        self._agent_speaking = False
        self._agent_start_step = 0
        self._agent_step = -1
        self._agent_began_over_user = False
        self._agent_quiet_steps = 0
        self._overlap: _Overlap | None = None
        self._brief_voice = _Overlap(first_step=-1, last_step=-1)

    @property
    def user_speaking(self) -> bool:
        """Whether the user is speaking."""
        return self._user_speaking

    @property
    def user_begins(self) -> bool:
        """Whether the detector hears a voice that it is not sure of yet."""
        return self._user_voice is UserVoice.STARTING

    @property
    def agent_speaking(self) -> bool:
        """Whether an agent utterance is open."""
        return self._agent_speaking

    def step(
        self,
        index: int,
        *,
        user: UserVoice,
        user_level_db: float,
        agent_level_db: float,
        agent_word: bool,
        given_word: bool = False,
        can_be_cut: bool = False,
    ) -> list[TurnEvent]:
        """Observe one step.

        Args:
            index: The step. Steps may be missing, but the index never decreases.
            user: The detector's state after this step of the user's audio.
            user_level_db: Level of the user's audio in this step, dBFS.
            agent_level_db: Level of the agent's audio in this step, dBFS.
            agent_word: Whether the monologue holds a word piece in this step.
            given_word: Whether that is a word that the agent was given: it goes on with those.
            can_be_cut: Whether what the agent says can be stopped from outside.

        Returns:
            The events of this step, in order.

        Raises:
            ValueError: The index goes back.
        """
        if index <= self._last_step:
            raise ValueError(f"step {index} comes after step {self._last_step}")
        self._last_step = index
        # The user comes first, so that an agent that answers in the same step answers a turn
        # that has ended.
        events = self._step_user(index, user, user_level_db)
        events += self._step_agent(index, agent_level_db, agent_word, given_word)
        events += self._step_overlap(index)
        if can_be_cut and self._overlap is not None and self._overlap_is_long(self._overlap):
            events += self.give_up(index + 1 - self._overlap.first_step)
        return events

    def _overlap_is_long(self, overlap: _Overlap) -> bool:
        return overlap.voice_steps * STEP_SECS >= self._longest_overlap_secs

    def hear_wish(self) -> list[TurnEvent]:
        """The model wishes to speak, and is kept from it: a user who is falling silent has stopped.

        Returns:
            The end of the user's speech, if it was still open.
        """
        if self._user_speaking and self._user_voice is UserVoice.STOPPING:
            return [self._stop_user(self._last_step)]
        return []

    def give_up(self, over_steps: int) -> list[TurnEvent]:
        """The agent gives up the floor in this step, while its sound still goes on.

        Args:
            over_steps: Steps since the user began to speak over it, this one included.

        Returns:
            The yield and the end of the utterance, if one was open.
        """
        if not self._agent_speaking:
            return []
        index = self._last_step
        time_secs, delay_secs = (index + 1) * STEP_SECS, over_steps * STEP_SECS
        yielded = Yielded(index, time_secs, delay_secs, is_cut=True)
        return [yielded, self._stop_agent(index, yielded=True)]

    def interrupt(self) -> list[TurnEvent]:
        """Somebody else cut the agent off: end its utterance; what it says next is a new one.

        Returns:
            The closing event, if an utterance was open.
        """
        if not self._agent_speaking:
            return []
        return [self._stop_agent(self._last_step, yielded=False)]

    def finish(self) -> list[TurnEvent]:
        """End the conversation, and close what is open.

        Returns:
            The closing events.
        """
        events: list[TurnEvent] = []
        if self._user_speaking:
            events.append(self._stop_user(self._last_step))
        return events + self.interrupt()

    def _step_user(self, index: int, user: UserVoice, level_db: float) -> list[TurnEvent]:
        self._user_voice = user
        self._user_levels_db.append(level_db)
        self._note_brief_voice(index, user)
        events: list[TurnEvent] = []
        if user is UserVoice.SPEAKING and not self._user_speaking:
            events = self._start_user(index)
        elif user in (UserVoice.QUIET, UserVoice.STARTING) and self._user_speaking:
            self._stopping_steps += 1
            events = [self._stop_user(index)]
        self._stopping_steps = self._stopping_steps + 1 if user is UserVoice.STOPPING else 0
        return events

    def _note_brief_voice(self, index: int, user: UserVoice) -> None:
        if user not in (UserVoice.STARTING, UserVoice.SPEAKING):
            return
        voice = self._brief_voice
        if voice.last_step < index - ONSET_PAUSE_STEPS:
            voice.first_step = max(voice.last_step + 1, index + 1 - self._onset_steps())
        voice.last_step = index

    def _start_user(self, index: int) -> list[TurnEvent]:
        events: list[TurnEvent] = []
        first_step = max(0, index + 1 - self._onset_steps())
        if self._agent_speaking and self._overlap is None:
            first_step_over_agent = max(first_step, self._agent_start_step)
            if first_step_over_agent < self._silent_step():
                # Its last step is counted below.
                voice_steps = index - first_step_over_agent
                self._overlap = _Overlap(first_step_over_agent, index, voice_steps)
            elif self._agent_quiet_steps >= self._yield_stop_steps - 1:
                # The agent was done before the user began.
                events.append(self._stop_agent(index, yielded=False))
        self._user_speaking = True
        events.append(
            UserStarted(
                index,
                first_step * STEP_SECS,
                voice_secs=(index + 1 - first_step) * STEP_SECS,
                over_agent=self._agent_speaking,
            )
        )
        return events

    def _onset_steps(self) -> int:
        """Return how many steps ago, counting this one, the user's voice began to sound."""
        threshold_db = max(
            max(self._user_levels_db) - ONSET_BELOW_PEAK_DB,
            min(self._user_levels_db) + ONSET_ABOVE_FLOOR_DB,
        )
        sounding = pause = 1
        for steps, level_db in enumerate(reversed(self._user_levels_db), start=1):
            pause = 0 if level_db >= threshold_db else pause + 1
            if pause > ONSET_PAUSE_STEPS:
                break
            if pause == 0:
                sounding = steps
        return sounding

    def _stop_user(self, index: int) -> UserStopped:
        self._user_speaking = False
        quiet_secs = self._stopping_steps * STEP_SECS
        return UserStopped(index, (index + 1) * STEP_SECS - quiet_secs, quiet_secs=quiet_secs)

    def _step_agent(
        self, index: int, level_db: float, word: bool, given_word: bool
    ) -> list[TurnEvent]:
        self._agent_step = index
        if not self._agent_speaking:
            if word or level_db >= self._open_level_db:
                return self._start_agent(index)
            return []
        begins = word or level_db >= self._open_level_db
        if begins and not given_word and self._answers():
            self._agent_quiet_steps += 1  # Up to this step, which is not one of the silence.
            return [*self._end_utterance(index), *self._start_agent(index)]
        voiced = word or level_db >= self._close_level_db
        self._agent_quiet_steps = 0 if voiced else self._agent_quiet_steps + 1
        if self._agent_quiet_steps >= self._agent_stop_steps:
            return self._end_utterance(index)
        if self._overlap and self._agent_quiet_steps >= self._yield_stop_steps:
            return self._end_utterance(index)
        return []

    def _answers(self) -> bool:
        """Whether what begins now is an answer: the agent yielded, and the user is done."""
        if self._agent_quiet_steps < RESUME_QUIET_STEPS or self._user_voice is UserVoice.SPEAKING:
            return False
        silent_step = self._agent_step - self._agent_quiet_steps
        overlap = self._overlap or self._brief_overlap(silent_step)
        if not self._yields(overlap, silent_step):
            return False
        self._overlap = overlap
        return True

    def _brief_overlap(self, silent_step: int) -> _Overlap | None:
        """Return the user's voice that the detector was not sure of, if the agent fell silent."""
        voice = self._brief_voice
        if voice.last_step - voice.first_step + 1 < BRIEF_VOICE_STEPS:
            return None
        if not self._agent_start_step <= voice.first_step < silent_step:
            return None
        return replace(voice)

    def _start_agent(self, index: int) -> list[TurnEvent]:
        events: list[TurnEvent] = []
        # The agent answers before the detector is sure: the user's turn ended when they fell
        # silent, and observers that measure the answer need to hear of it first.
        if self._user_speaking and self._user_voice is UserVoice.STOPPING:
            events.append(self._stop_user(index))
        self._agent_speaking = True
        self._agent_start_step = index
        self._agent_began_over_user = self._user_speaking
        self._agent_quiet_steps = 0
        self._overlap = None
        over_user = self._user_speaking
        events.append(AgentStarted(index, (index + 1) * STEP_SECS, over_user=over_user))
        return events

    def _end_utterance(self, index: int) -> list[TurnEvent]:
        silent_step = self._silent_step()
        if not self._yields(self._overlap, silent_step):
            return [self._stop_agent(index, yielded=False)]
        assert self._overlap is not None
        delay_secs = max(0, silent_step - self._overlap.first_step) * STEP_SECS
        return [
            Yielded(index, (silent_step + 1) * STEP_SECS, delay_secs=delay_secs),
            self._stop_agent(index, yielded=True),
        ]

    def _yields(self, overlap: _Overlap | None, silent_step: int) -> bool:
        if overlap is None or silent_step <= overlap.first_step:
            return False
        if silent_step - overlap.last_step > self._yield_window_steps:
            return False
        spoken_steps = silent_step - self._agent_start_step
        return not self._agent_began_over_user or spoken_steps >= self._agent_backchannel_steps

    def _stop_agent(self, index: int, *, yielded: bool) -> AgentStopped:
        silent_secs = (self._silent_step() + 1) * STEP_SECS
        self._agent_speaking = False
        self._agent_quiet_steps = 0
        self._overlap = None
        return AgentStopped(index, silent_secs, yielded=yielded)

    def _silent_step(self) -> int:
        """Return the first step of the agent's present silence."""
        return self._agent_step - self._agent_quiet_steps + 1

    def _step_overlap(self, index: int) -> list[TurnEvent]:
        if not self._agent_speaking:
            return []
        agent_voiced = self._agent_quiet_steps == 0
        if self._user_speaking and self._user_voice is UserVoice.SPEAKING:
            if self._overlap is not None:
                self._overlap.last_step = index
                self._overlap.voice_steps += 1
            elif agent_voiced:
                self._overlap = _Overlap(first_step=index, last_step=index)
            return []
        if self._overlap is None or self._user_speaking or not agent_voiced:
            return []
        if index - self._overlap.last_step <= self._yield_window_steps:
            return []
        overlap, self._overlap = self._overlap, None
        duration_secs = (overlap.last_step - overlap.first_step + 1) * STEP_SECS
        return [Backchannel(index, overlap.first_step * STEP_SECS, duration_secs=duration_secs)]
